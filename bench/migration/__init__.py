"""Before and after for each training framework; README.md here shows the differences."""
