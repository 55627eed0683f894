"""What a process that makes shards of tokenize imports, most of it torch: the server that processes are forked off
imports it once for all of them."""
