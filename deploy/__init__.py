"""What runs the project on many machines: secrets, services and their set-up. `docs/many-machines.md` says how."""
