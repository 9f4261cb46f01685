#!/bin/sh
# Makes the buckets, and an account for each user of them with the policy beside this file. Run again, it changes nothing
# but the accounts' secrets and policies, which become those of .env and of the files.
set -eu

account() { # name, secret, policy
  mc admin user add store "$1" "$2"
  mc admin policy create store "$3" "/setup/$3-policy.json"
  # The second time MinIO calls the attachment an error, though it is what was asked for.
  answer=$(mc admin policy attach store "$3" --user "$1" 2>&1) || case $answer in
    *"already in effect"*) ;;
    *) echo "$answer" >&2; exit 1 ;;
  esac
}

mc mb --ignore-existing store/heimdall-models store/onnx-staging store/mlflow store/airflow-logs
account onnx-release "$RELEASE_S3_SECRET_KEY" release
account mlflow "$MLFLOW_S3_SECRET_KEY" mlflow
account airflow-logs "$LOGS_S3_SECRET_KEY" logs
