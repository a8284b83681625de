"""What a user can do about an oddity that was taken all the same, by the code of its note."""

from __future__ import annotations

#: Code of a note -> what to do about it. A refusal brings its own.
REMEDIES: dict[str, str] = {
    # what was passed over
    "DUP_INSTANCE_IGNORED": "Remove the copies",
    "DICOMDIR_IGNORED": "Nothing; check that all images are in the folder itself",
    "FS_SKIPPED": "Put the files themselves there where they belong to the data",
    "LOCALIZER_SKIPPED": "Nothing; give the scout a folder of its own to read it",
    "NON_DICOM_SKIPPED": "Nothing; check that no slice is among them",
    "NON_IMAGE_SKIPPED": "Nothing; objects without pixels are not read",
    "TAB_UNMATCHED": "List the missing images, or remove them",
    # how the file is written
    "CHARSET_FALLBACK": "Nothing for the image; correct SpecificCharacterSet where names matter",
    "FILE_EXTENSION": "Rename the file to what it holds",
    "FILE_TRAILING_DATA": "Check that the header describes the whole image; fetch the file again",
    "HDR_BAD_DTYPE": "Save it again as int16 or float32",
    "NO_FILE_META": "Export it again as a DICOM file with its meta information",
    "NO_PREAMBLE": "Export it again as a DICOM file with its preamble",
    "TAB_DIALECT": "Save the table with commas, as UTF-8 without a byte order mark",
    "TAB_ENCODING": "Save the table as UTF-8",
    # several images in one
    "SERIES_SPLIT": "Give each series a folder of its own",
    "SERIES_SPLIT_4D": "Give each time point a folder of its own",
    "SERIES_SPLIT_ECHO": "Give each echo a folder of its own",
    "SINGLE_SLICE": "Nothing where 2D is meant; give all slices where it is part of a volume",
    "SPLIT_LEAK": "Name the patients in the data set, so that none is in two splits",
    # geometry
    "GEOM_NO_ORIENTATION": "Copy qform or sform from the original image; sides may be swapped",
    "GEOM_NO_SPACING": "Give the spacing where millimetres matter",
    "GEOM_QFORM_SFORM": "Check which of the two is right, and write it into both",
    "GEOM_RESAMPLED": "Nothing, as asked; set data.irregular=refuse to have such series refused",
    "GEOM_UNITS": "Check that the spacing printed here is right in millimetres",
    "SPACING_FROM_POSITIONS": "Nothing; name thickness and profile to upsample where the header's is right",
    # values
    "BURNED_IN_ANNOTATION": "Look at the pixels before the image or anything made from it is shared",
    "LABEL_EMPTY": "Check that there is nothing to mark",
    "LABEL_FULL": "Check that the mask is not the image, or inverted",
    "MONOCHROME1_INVERTED": "Nothing; bright means high now, as in other images",
    "NO_RESCALE_ASSUMED_IDENTITY": "Check that air is near -1000",
    "PADDING_MASKED": "Nothing; padding has the lowest real value now",
    "PHI_NOT_COPIED": "De-identify the source before it or a copy of it is shared; what medgan makes does not have it",
    "PIX_COLOUR": "Check that the picture was grey; colours were equal",
    "PIX_CONSTANT": "Remove the image, or fetch it again: nothing can be learned from it",
    "PIX_PRECISION_LOSS": "Scale the values where their last digits matter",
    "RUN_UNFINISHED": "Finish it with medgan train --out RUN --resume",
}
