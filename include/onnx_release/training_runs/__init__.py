"""Training runs in MLflow as a release sees them: their tags, and the decision about each. No server is called here."""
