"""Deployment on many machines: secrets, services and their set-up. See `docs/many-machines.md`."""
