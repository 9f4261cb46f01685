"""Events of releases: asset events, notifications, Airflow metrics and OpenLineage datasets."""
