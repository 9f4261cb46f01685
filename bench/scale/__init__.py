"""What releases on many machines cost: docker-compose.yaml under load, and what that comes to in a year of them."""
