"""First day with the package: its installation into a stock Airflow, timed step by step up to the first alias."""
