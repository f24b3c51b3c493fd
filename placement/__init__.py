"""Where models live: the records of what is registered, and the store that keeps them."""
