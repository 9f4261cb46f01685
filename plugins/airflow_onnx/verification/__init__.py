"""Verification of released versions: their files in the store, the results in MLflow, and the table of a DAG run."""
