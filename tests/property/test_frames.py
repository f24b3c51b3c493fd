"""Frames of the line between pods: what was packed comes out again, wherever the stream of bytes is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.transport.frames import BadFrame, Frame, Kind, Packer, Unpacker

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
METADATA = st.lists(
    st.one_of(st.tuples(TEXT, TEXT), st.tuples(TEXT.map(lambda key: f"{key}-bin"), st.binary(max_size=20))), max_size=4
).map(tuple)
FRAMES = st.lists(
    st.builds(
        Frame,
        st.sampled_from(Kind),
        st.integers(0, 255),
        st.integers(0, 2**32 - 1),
        st.floats(allow_nan=False),
        TEXT,
        METADATA,
        st.binary(max_size=200),
    ),
    max_size=8,
)


def packed(frames: list[Frame]) -> bytes:
    packer = Packer()
    return b"".join(
        b"".join(
            packer.pack(
                Kind(frame.kind),
                frame.id,
                status=frame.status,
                seconds=frame.seconds,
                text=frame.text,
                metadata=frame.metadata,
                body=frame.body,
            )
        )
        for frame in frames
    )


@given(FRAMES, st.lists(st.integers(0, 3000)))
def test_what_is_packed_comes_out_again_wherever_the_stream_is_cut(frames: list[Frame], cuts: list[int]) -> None:
    data = packed(frames)
    ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    unpacker, found, at = Unpacker(200), [], 0
    for end in ends:
        found += unpacker.take(data[at:end])
        at = end
    assert found == frames


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=3))
def test_other_bytes_are_frames_or_an_error_and_never_more_than_the_limits(data: bytes, cuts: list[int]) -> None:
    unpacker, at = Unpacker(100), 0
    try:
        for end in (*sorted(cuts), len(data)):
            assert all(len(frame.body) <= 100 for frame in unpacker.take(data[at:end]))
            at = end
    except BadFrame:
        pass
