"""Images on the host: which (sources), in what order (pipeline), and how they are changed (image_ops)."""
