"""Tables, pictures and reports that compare runs, with each other and with the published results."""
