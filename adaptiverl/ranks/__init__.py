"""Many ranks: who decides together, where a shard lies in its logical tensor, sums over shards.

Nothing of torch.distributed is replaced: one all-reduce of four numbers before the controller
decides, one of three after the pass where its law reads the pass's sums, and one of a sum per
tensor where shards need their logical tensor's sum of squares.
"""
