"""Block contents that tests write: each block says which write it is from."""

from storage.format.layout import BLOCK_SIZE_BYTES


def make_blocks(count: int, generation: int, *, is_random: bool = False) -> bytes:
    """`count` blocks that no other generation has; compressible or not."""
    parts: list[bytes] = []
    for index in range(count):
        word = (generation * 1_000_003 + index + 1).to_bytes(8, "little")
        if is_random:
            state = int.from_bytes(word, "little") * 0x9E3779B97F4A7C15 % (1 << 64)
            words: list[bytes] = []
            for _ in range(BLOCK_SIZE_BYTES // 8):
                state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
                words.append(state.to_bytes(8, "little"))
            parts.append(b"".join(words))
        else:
            parts.append(word * (BLOCK_SIZE_BYTES // 8))
    return b"".join(parts)
