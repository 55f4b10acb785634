"""What the commands of `fmnist` do."""
