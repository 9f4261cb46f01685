#!/bin/bash
# Three databases with an owner each, who can reach no other one. PostgreSQL's image runs this once, on an empty volume.
set -euo pipefail

database() { # name of database and role, password
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set name="$1" --set password="$2" --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

database airflow "$AIRFLOW_DB_PASSWORD"
database celery "$CELERY_DB_PASSWORD"
database mlflow "$MLFLOW_DB_PASSWORD"
