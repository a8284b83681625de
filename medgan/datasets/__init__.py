"""What a data set is: cases, layouts, splits, phantoms, provenance and cards."""
