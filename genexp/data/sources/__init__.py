"""One file a data set, named as the data set is; files that begin with an underscore help several of them."""
