"""The names and calls of other libraries on Burnish's loop, for scripts written for them."""
