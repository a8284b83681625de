"""How medgan says no: one exception for refused input, the exit codes, and the table of codes.

Every refusal names the file (or setting), the cause and the fix, so that a person can act on it without
reading a traceback. A `Note` is the milder form: the input was taken, and this is what is odd about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_SKIPPED = 4
EXIT_INTERRUPTED = 130

#: code -> what it means. A code that is not here cannot be raised (a test holds the table complete).
CODES: dict[str, str] = {
    # files
    "FILE_MISSING": "the path does not exist",
    "FILE_EMPTY": "the file has no bytes",
    "FILE_TRUNCATED": "the file ends before its content does",
    "FILE_CORRUPT": "a checksum of the file is wrong",
    "FILE_EXTENSION": "the name's extension does not match the content",
    "FILE_FORMAT": "no reader knows this kind of file",
    "FILE_IS_POINTER": "a Git LFS pointer stands where the image should be",
    "FILE_NOT_DICOM": "the file is not DICOM",
    "FILE_NOT_NIFTI": "the file is not NIfTI",
    "FILE_PAIR_MISSING": "the other half of an .hdr/.img pair is missing",
    "FILE_TOO_DEEP": "nesting deeper than any real file has",
    "FILE_TRAILING_DATA": "bytes follow the image",
    "FILE_UNSAFE": "a file that could run code when it is read",
    "FORMAT_ANALYZE": "ANALYZE 7.5 does not say which side is left",
    "FS_SKIPPED": "a link, a special file or a folder loop was passed over",
    "ARCHIVE_ESCAPE": "an archive member would be written outside its folder",
    "LIMIT": "the image is larger than the memory cap",
    "LIMIT_OR_TRUNCATED": "the header claims more data than the file holds or the memory cap allows",
    "NO_IMAGES": "the folder holds no image",
    "NO_PREAMBLE": "a DICOM file without its 128-byte preamble",
    "NO_FILE_META": "a DICOM file without file meta information",
    "NON_DICOM_SKIPPED": "files that are not DICOM were passed over",
    "NON_IMAGE_SKIPPED": "DICOM objects without an image were passed over",
    "DICOMDIR_IGNORED": "a DICOMDIR was passed over; the files themselves were read",
    "DUP_INSTANCE_IGNORED": "byte-identical copies of an instance were passed over",
    "DUP_UID_CONFLICT": "two different instances share one SOPInstanceUID",
    "UID_INVALID": "a UID is not a UID",
    "CHARSET_FALLBACK": "the character set is unknown; text was read as Latin-1",
    "SERIES_SPLIT": "the folder holds several series; they are kept apart",
    "SERIES_SPLIT_4D": "one series holds several time points; they are kept apart",
    "SERIES_SPLIT_ECHO": "one series holds several echoes; they are kept apart",
    "LOCALIZER_SKIPPED": "a scout image was passed over",
    "TS_UNSUPPORTED": "the transfer syntax cannot be decoded",
    # geometry
    "DIM_4D": "a 4-D image where one volume is expected",
    "DIM_5D": "an image of five or more dimensions",
    "DIM_UNSUPPORTED": "an array of a number of dimensions that means nothing here",
    "SINGLE_SLICE": "one slice only",
    "GEOM_MISSING_SLICE": "a slice is missing from the series",
    "GEOM_DUPLICATE_POSITION": "two slices lie at the same position",
    "GEOM_GANTRY_TILT": "slices are sheared against their normal (gantry tilt)",
    "GEOM_VARIABLE_SPACING": "slices are unevenly spaced",
    "GEOM_NO_ORIENTATION": "the orientation is not recorded",
    "GEOM_NO_POSITION": "the position of a slice is not recorded",
    "GEOM_NO_SPACING": "the spacing is not recorded",
    "GEOM_BAD_SPACING": "a spacing that is zero, negative or not finite",
    "GEOM_BAD_ORIENTATION": "direction cosines that are not orthogonal unit vectors",
    "GEOM_BAD_AFFINE": "an affine with values that are not finite",
    "GEOM_SINGULAR_AFFINE": "an affine that cannot be inverted",
    "GEOM_RESAMPLED": "a tilted or unevenly spaced series was resampled to an even, straight grid, as asked",
    "GEOM_SHEAR": "an affine that is not rotation times scale",
    "GEOM_QFORM_SFORM": "qform and sform disagree",
    "GEOM_UNITS": "spatial units other than millimetres",
    "GEOM_FRAME_COUNT": "the number of frames and of their descriptions differ",
    "GEOM_MIXED_ORIENTATION": "slices of one series differ in orientation",
    "GEOM_MIXED_MATRIX": "slices of one series differ in matrix size",
    "GEOM_MIXED_SPACING": "slices of one series differ in pixel spacing",
    "GEOM_MIXED_FRAME_OF_REFERENCE": "slices of one series differ in frame of reference",
    "GEOM_CHANNELS_DIFFER": "the channels of one case lie on different grids",
    "SPACING_FROM_POSITIONS": "SliceThickness disagrees with the positions; the positions were used",
    # pixels
    "PIX_MISSING": "an image without pixel data",
    "PIX_TRUNCATED": "pixel data shorter than the header says",
    "PIX_DECODE_FAILED": "the compressed pixel data cannot be decoded, or not in time",
    "PIX_BAD_MATRIX": "a matrix without rows or columns",
    "PIX_BAD_BITS": "an impossible number of bits a pixel",
    "PIX_BAD_RESCALE": "a rescale slope that is zero or not finite",
    "PIX_COLOUR": "a colour image where grey values are expected",
    "PIX_COMPLEX": "complex values",
    "PIX_CONSTANT": "every voxel has the same value",
    "PIX_NONFINITE": "values that are not finite",
    "PIX_PRECISION_LOSS": "values too large to be kept exactly",
    "PADDING_MASKED": "padding outside the field of view was set to the lowest real value",
    "MONOCHROME1_INVERTED": "small stored values are bright; values were inverted so that bright means high",
    "NO_RESCALE_ASSUMED_IDENTITY": "a CT without rescale slope and intercept; values were taken as HU",
    "BURNED_IN_ANNOTATION": "text may be burned into the pixels",
    "PHI_NOT_COPIED": "identifying elements are present; none is copied into synthetic output",
    "HDR_BAD_DIM": "impossible dimensions in the header",
    "HDR_BAD_DTYPE": "an unknown data type in the header",
    "HDR_BAD_OFFSET": "an impossible place for the voxels in the header",
    # labels
    "LABEL_MISSING": "a case has no mask or label",
    "LABEL_GRID": "the mask lies on another grid than its image",
    "LABEL_NON_INTEGER": "mask values that are not whole numbers",
    "LABEL_OUT_OF_RANGE": "mask values that no label has",
    "LABEL_EMPTY": "the mask is empty",
    "LABEL_FULL": "the mask covers the whole image",
    "LABEL_DIM": "a mask of other dimensions than its image",
    "LABEL_UNKNOWN": "a label that the data set or the run does not have",
    # data sets and tables
    "DATASET_UNKNOWN": "no known data set layout",
    "DATASET_EMPTY": "a data set without usable training cases",
    "DATASET_UNFINISHED": "an augmented data set that is not finished yet",
    "DATASET_JSON": "dataset.json is missing something or wrong",
    "TAB_DUPLICATE_ID": "two cases have the same id",
    "TAB_MISSING_LABEL": "a row without its label",
    "TAB_UNMATCHED": "images and rows do not match one to one",
    "TAB_PATH_MISSING": "a listed file does not exist",
    "TAB_PATH_ESCAPE": "a listed path leaves the data set's folder",
    "TAB_DIALECT": "a table with another separator or byte order mark",
    "TAB_ENCODING": "a table that is not UTF-8",
    "TAB_BAD_LABEL": "a label that is not a number or a name",
    "TAB_BAD_SPLIT": "a split that is not train, val or test",
    "TAB_COLUMNS": "a required column is missing",
    "TAB_EMPTY": "a table without rows",
    "TAB_BAD_PATH": "a path that cannot be one",
    "TAB_BAD_JSON": "JSON that cannot be read",
    "SPLIT_LEAK": "one patient is in the training and in the test split",
    # settings, runs, output
    "CFG_UNKNOWN": "an unknown setting",
    "CFG_VALUE": "a setting with an impossible value",
    "CFG_UNSAFE": "a settings file that asks for code to be run",
    "CKPT_UNSAFE": "a checkpoint in a format that can run code",
    "CKPT_CORRUPT": "a checkpoint that is damaged",
    "CKPT_NONFINITE": "weights that are not finite",
    "CKPT_MISMATCH": "weights of another model",
    "RUN_NOT_FOUND": "no run folder there",
    "RUN_TASK": "a run of another task",
    "RUN_CHANNELS": "a run for another number of channels",
    "RUN_UNFINISHED": "a run without weights yet",
    "OUT_EXISTS": "the output exists and holds something else",
    "OUT_FULL": "the disk is full or a quota is used up",
    "OUT_DENIED": "the output cannot be written to",
    "FILE_DENIED": "the file may not be read",
    "OUT_BUSY": "another process is writing to this output",
    "WORKER_DIED": "a worker process ended without a word",
    "PLACE_NONE": "no place in the tissue fits the lesion",
    "FACTOR_RANGE": "a factor outside the supported range",
    "INPUT_KIND": "an input of a kind that is not supported",
    "PIPELINE_UNKNOWN": "no pipeline of that name",
    "OUT_OF_MEMORY": "the machine's or the GPU's memory does not hold the work",
    "TRAINING_DIVERGED": "training ran away and could not be brought back",
}


class Refused(Exception):
    """Input, setting or output that medgan will not work with.

    Args:
        code: A key of `CODES`.
        where: The file, folder or setting it is about.
        why: The cause, in plain words.
        fix: What the user can do about it.
    """

    def __init__(self, code: str, where: str | Path, why: str, fix: str) -> None:
        if code not in CODES:
            raise ValueError(f"{code} is not in medgan.errors.CODES")
        self.code, self.where, self.why, self.fix = code, str(where), why.rstrip("."), fix.rstrip(".")
        super().__init__(str(self))

    def __str__(self) -> str:
        return f"error[{self.code}] {self.where}: {self.why}. {self.fix}."

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str, str, str]]:
        return (Refused, (self.code, self.where, self.why, self.fix))


@dataclass(frozen=True)
class Note:
    """Something odd about an input that was taken all the same.

    Args:
        code: A key of `CODES`.
        where: The file or folder it is about.
        why: What was found and what was done.
    """

    code: str
    where: str
    why: str

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"{self.code} is not in medgan.errors.CODES")

    def __str__(self) -> str:
        return f"warning[{self.code}] {self.where}: {self.why}"


class Interrupted(Exception):
    """Work was stopped by the user after saving; carries what to say."""
