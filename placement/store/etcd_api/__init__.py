"""What of etcd's API the store speaks: messages in a descriptor pool of their own, and the table of methods."""
