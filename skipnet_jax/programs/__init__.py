"""Commands that read their own command line, each a `main(argv, program)`: lists, reports and shards."""
