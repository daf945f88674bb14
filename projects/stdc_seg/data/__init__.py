"""Reading, transforming and finding the data of this project."""
