"""The commands of `spr`, a file a group: each reads its options and calls one function; heavy imports happen inside."""
