"""What the leader looks after, a file each: one turn of it is one call, which adds to the turn's plan."""
