"""Which training runs are to be released: found in MLflow, judged by what is known of them, planned."""
