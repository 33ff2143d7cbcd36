"""What a finished network says: exact scores, predictions, and what its gates do."""
