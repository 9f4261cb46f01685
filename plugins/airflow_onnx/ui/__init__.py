"""Pages of this package inside Airflow's web server."""
