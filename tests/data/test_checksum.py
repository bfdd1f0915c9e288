import numpy as np

from vdm_jax.data.checksum import crc32c, masked_crc32c


def test_published_values():
    # RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert masked_crc32c((24).to_bytes(8, "little")) == ((crc32c((24).to_bytes(8, "little")) >> 15 | crc32c(
        (24).to_bytes(8, "little")) << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_long_texts_equal_the_definition_bit_by_bit():
    data = np.random.default_rng(0).integers(0, 256, 2 * 1024 + 77, np.uint8).tobytes()
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF
