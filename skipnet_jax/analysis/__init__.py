"""What is measured about networks and runs, and how it is shown."""
