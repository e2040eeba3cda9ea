"""CZI files of Zeiss."""
