"""Commands of the `airflow` program, for shells and scripts."""
