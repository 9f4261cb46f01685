"""S3 storage, staging between tasks and the worker cache."""
