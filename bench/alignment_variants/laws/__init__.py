"""The laws, a class for each idea; their numbers are options."""
