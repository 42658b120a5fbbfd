"""Making data sets: raw archives and image folders become WebDataset tars with an index."""
