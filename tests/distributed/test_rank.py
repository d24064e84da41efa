"""Rank of a process, read from the variables of torchrun."""

from __future__ import annotations

from genexp.distributed.rank import RankInfo, read_rank_info


def test_rank_info_is_read_from_torchrun_variables() -> None:
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node", "MASTER_PORT": "1"}
    assert read_rank_info({**variables, "LOCAL_WORLD_SIZE": "2"}) == RankInfo(
        3, 4, local_rank=1, local_world_size=2
    )
    assert read_rank_info({**variables, "WORLD_SIZE": "1", "RANK": "0"}) is None
    assert read_rank_info({"RANK": "3"}) is None, "RANK alone is not a torchrun environment"
