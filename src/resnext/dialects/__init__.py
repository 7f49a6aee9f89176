"""What other libraries call things: one file for each library."""
