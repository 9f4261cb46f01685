"""The embedded stack: MinIO, MLflow and Airflow on loopback, without Docker, for the demo and the system tests."""
