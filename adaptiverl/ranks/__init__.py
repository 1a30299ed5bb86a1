"""Many ranks: who decides together, where a shard lies in its logical tensor, sums over shards.

One all-reduce of four numbers before the controller decides, one of three after the pass where its
law reads the pass's sums, and one of a sum per tensor where shards need their logical tensor's sum
of squares. Of torch.distributed only the entering and leaving of a `Join` is wrapped, in which
ranks may leave before others (`joining`).
"""
