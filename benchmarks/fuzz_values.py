"""What mutations put in the place of values: numbers, texts, types and tags at which readers trip."""

from __future__ import annotations

#: Whole numbers at which sizes and signs turn over.
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 16, 31, 32, 64, 127, 128, 255, 256, 348, 540, 32767, 32768, 65535, 65536, 2**24,
           2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -128, -32768, -(2**31), -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-12, 1e12, 3.4e38, 1e300, float("inf"), float("-inf"),
          float("nan"))
VRS = (b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV XX "
        b"\0\0").split(b" ")
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
#: What stands in text elements, right and wrong.
TEXTS = (b"", b"0", b"-1", b"1e400", b"nan", b"inf", b"-inf", b"1\\2", b"1\\1\\1\\1\\1\\1", b"0\\0\\0\\0\\0\\0",
          b"a\\b", b"\\", b"1e-320\\1e-320", b"1e308\\1e308", b"99999999999999999999", b"2147483647", b"1.5", b" ",
          b"\xff\xfe", b"\0", b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"LOCALIZER", b"ISO 2022 IR 87",
          b"ISO_IR 999\\x", b"MR", b"CT", b"US", b"../../etc", b"1.2.3", b"1.2.840.10008.1.2.4.70",
          b"1.2.840.10008.1.2.5", b"YES", b"5\\5", b"-1\\1", b"0\\1\\0\\1\\0\\0", b"0.8\\0.6\\0\\-0.6\\0.8\\0",
          b"1e20\\1e20\\1e20", b"0\\0\\1e-4")
#: Elements that a reader looks at: tag and VR.
TAGS = ((0x00280002, b"US"), (0x00280004, b"CS"), (0x00280006, b"US"), (0x00280008, b"IS"), (0x00280010, b"US"),
         (0x00280011, b"US"), (0x00280030, b"DS"), (0x00280100, b"US"), (0x00280101, b"US"), (0x00280102, b"US"),
         (0x00280103, b"US"), (0x00280120, b"SS"), (0x00280121, b"US"), (0x00281052, b"DS"), (0x00281053, b"DS"),
         (0x00283000, b"SQ"), (0x00200032, b"DS"), (0x00200037, b"DS"), (0x00200013, b"IS"), (0x0020000E, b"UI"),
         (0x00200052, b"UI"), (0x00080005, b"CS"), (0x00080008, b"CS"), (0x00080016, b"UI"), (0x00080018, b"UI"),
         (0x00080060, b"CS"), (0x00180050, b"DS"), (0x00180088, b"DS"), (0x00180081, b"DS"), (0x00181164, b"DS"),
         (0x00200100, b"IS"), (0x00280301, b"CS"), (0x52009229, b"SQ"), (0x52009230, b"SQ"), (0x7FE00001, b"OV"),
         (0x7FE00002, b"OV"), (0x7FE00010, b"OW"), (0x00100010, b"PN"), (0x00091001, b"UN"), (0xFFFEE00D, b"\0\0"))
#: What stands in tables, settings and other text files.
WORDS = ("", "0", "-1", "1e400", "NaN", "nan", "inf", "true", "null", "$x", "_target_", "../a", "/etc/passwd",
          "C:\\x", "http://a/b", "a.nii.gz", "b.nii.gz", ".", "~", "a" * 300, "\0", "\u2028", "\ud7ff", "٣", "²",
          "1_0", "9" * 5000, "\"", "'", "=1+1", "n/a", "train", "test", "|", "a|", "\r", "\x1c", "[" * 70, "id",
          "image", "split", "label", "patient", "modality", "1e308", "0x10", "-0", "1" * 400, "training", "labels",
          "channel_names", "file_ending", "seed", "lesion", "F32", "BF16")
