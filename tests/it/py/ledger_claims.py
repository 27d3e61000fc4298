"""What a Parquet file says of its rows beside them, held against the rows: `false_claim(data, columns)` gives the first thing that is
not so, or that cannot be compared, or None. Reads footers, page headers and offset indexes itself, by Parquet's own description:
a library that decodes rows passes over much of what other readers believe."""

import struct

VERSION_1, DICTIONARY, VERSION_2 = 0, 2, 3  # kinds of pages


class Unclear(Exception):
    """Something that is said and is false, or cannot be held against the rows."""


class Thrift:
    """A struct in Thrift's compact protocol: fields by number. Knows the types that Parquet uses and no others."""

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise Unclear("the metadata is cut off")
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def fields(self) -> dict:
        fields, number = {}, 0
        while header := self.byte():
            number = number + (header >> 4) if header >> 4 else self.zigzag()
            kind = header & 15
            value = kind == 1 if kind in (1, 2) else self.value(kind)
            if number in fields:
                raise Unclear(f"field {number} is there twice")
            fields[number] = value
        return fields

    def value(self, kind: int):
        if kind in (1, 2):
            return self.byte() == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 8:
            length = self.varint()
            self.at += length
            if self.at > len(self.data):
                raise Unclear("a text is cut off")
            return self.data[self.at - length : self.at]
        if kind == 9:
            header = self.byte()
            count = header >> 4 if header >> 4 < 15 else self.varint()
            return [self.value(header & 15) for _ in range(count)]
        if kind == 12:
            return self.fields()
        raise Unclear(f"a value of the kind {kind}")


def known(fields: dict, what: str, numbers: str) -> None:
    for number in fields:
        if str(number) not in numbers.split():
            raise Unclear(f"{what}: field {number} says what cannot be held against the rows")


def same(what: str, told, truth) -> None:
    if told != truth:
        raise Unclear(f"{what}: {told}, and there is {truth}")


def levels_of(values: list, optional: bool) -> list[tuple]:
    """A column's values one by one: the value or None, whether it begins a row, its definition level."""
    levels = []
    for value in values:
        if not isinstance(value, list):
            levels.append((value, True, None))
        elif not value:
            levels.append((None, True, int(optional)))
        else:
            levels.extend((item, at == 0, int(optional) + 1 + (item is not None)) for at, item in enumerate(value))
    return levels


def as_bytes(value) -> bytes:
    return value.encode() if isinstance(value, str) else struct.pack("<q", value)


def in_order(value):
    return value.encode() if isinstance(value, str) else value


def check_bounds(what: str, stats: dict, levels: list[tuple]) -> None:
    known(stats, what, "1 2 3 5 6 7 8")
    values = [value for value, _, _ in levels if value is not None]
    if 3 in stats:
        same(f"{what}: nulls", stats[3], len(levels) - len(values))
    for number, exact, pick in ((6, 8, min), (2, None, min), (5, 7, max), (1, None, max)):
        if number not in stats:
            continue
        if not values:
            raise Unclear(f"{what}: a bound, and all are null")
        truth = pick(values, key=in_order)
        if isinstance(truth, int) or stats.get(exact):
            same(f"{what}: field {number}", stats[number], as_bytes(truth))
        elif (stats[number] > as_bytes(truth)) if pick is min else (stats[number] < as_bytes(truth)):
            raise Unclear(f"{what}: field {number} is {stats[number]!r}, and there is {truth!r}")


def pages_of(data: bytes, meta: dict) -> list[dict]:
    start, end = meta.get(11, meta[9]), meta.get(11, meta[9]) + meta[7]
    if end > len(data) or not 0 <= start < end:
        raise Unclear("a column chunk reaches beyond the file")
    pages, counts, at = [], {}, start
    while at < end:
        reader = Thrift(data, at)
        header = reader.fields()
        known(header, "a page header", "1 2 3 4 5 7 8")
        kind, after = header[1], reader.at + header[3]
        page = {VERSION_1: header.get(5), DICTIONARY: header.get(7), VERSION_2: header.get(8)}.get(kind)
        if page is None or (kind == DICTIONARY) != (at == start and 11 in meta) or after > end:
            raise Unclear("a page has no place here")
        encoding = page[4] if kind == VERSION_2 else page[2]
        if encoding not in meta[2]:
            raise Unclear("a page has an encoding that its metadata does not name")
        # Some writers count data pages of version 2 as ones of version 1.
        kinds = VERSION_1 if kind == VERSION_2 else kind
        counts[kinds, encoding] = counts.get((kinds, encoding), 0) + 1
        if kind != DICTIONARY:
            statistics = page.get(8 if kind == VERSION_2 else 5)
            pages.append({"at": at, "length": after - at, "levels": page[1], "statistics": statistics})
            if kind == VERSION_2:
                pages[-1] |= {"nulls": page[2], "rows": page[3]}
        at = after
    if not pages or pages[0]["at"] != meta[9]:
        raise Unclear("the data does not begin where it says")
    if 13 in meta:
        told: dict[tuple, int] = {}
        for one in meta[13]:
            kinds = VERSION_1 if one[1] == VERSION_2 else one[1]
            told[kinds, one[2]] = told.get((kinds, one[2]), 0) + one[3]
        same("the encodings of pages", told, counts)
    return pages


def check_chunk(data: bytes, chunk: dict, rows: int, values: list, optional: bool, is_list: bool) -> None:
    known(chunk, "a column chunk", "2 3 4 5")
    meta = chunk[3]
    known(meta, "a column chunk", "1 2 3 4 5 6 7 9 11 12 13 16")
    same("rows", len(values), rows)
    levels, pages = levels_of(values, optional), pages_of(data, meta)
    same("values", meta[5], len(levels))
    same("values of pages", sum(page["levels"] for page in pages), len(levels))
    if 12 in meta:
        check_bounds("statistics", meta[12], levels)
    texts = [value for value, _, _ in levels if isinstance(value, str)]
    if 16 in meta:
        known(meta[16], "size statistics", "1 2 3")
        if 1 in meta[16]:
            same("bytes of texts", meta[16][1], sum(len(text.encode()) for text in texts))
        nulls = sum(value is None for value, _, _ in levels)
        if is_list:
            of_level = lambda level: sum(found == level for _, _, found in levels) if level else values.count(None)
            truth = [of_level(level) for level in range(int(optional) + 3)]
        else:
            truth = [nulls, len(levels) - nulls] if optional else [len(levels)]
        if meta[16].get(3):
            same("definition levels", meta[16][3], truth)
        if meta[16].get(2):
            same("repetition levels", meta[16][2], [rows, len(levels) - rows] if is_list else [rows])
    at = row = 0
    offsets = None
    if 4 in chunk:
        reader = Thrift(data[chunk[4] : chunk[4] + chunk[5]])
        offsets = reader.fields()
        known(offsets, "the offset index", "1 2")
        same("the offset index: pages", len(offsets[1]), len(pages))
    for number, page in enumerate(pages):
        some = levels[at : at + page["levels"]]
        if page["statistics"] is not None:
            check_bounds("a page header", page["statistics"], some)
        begun = sum(new for _, new, _ in some)
        if "rows" in page:
            same("a page's rows and nulls", (page["rows"], page["nulls"]), (begun, sum(v is None for v, _, _ in some)))
        if offsets:
            told = offsets[1][number]
            same("the offset index", told, {1: page["at"], 2: page["length"], 3: row})
            if offsets.get(2):
                size = sum(len(value.encode()) for value, _, _ in some if isinstance(value, str))
                same("the offset index: bytes of texts", offsets[2][number], size)
        at, row = at + page["levels"], row + begun


def check(data: bytes, file, columns) -> None:
    length = int.from_bytes(data[-8:-4], "little")
    reader = Thrift(data[: len(data) - 8], len(data) - 8 - length)
    footer = reader.fields()
    same("the footer's length", reader.at, len(data) - 8)
    known(footer, "the footer", "1 2 3 4 5 6 7")
    same("rows of the file", footer[3], sum(group[3] for group in footer[4]))
    for number, group in enumerate(footer[4]):
        known(group, "a row group", "1 2 3 5 6 7")
        for place, chunk in enumerate(group[1]):
            name = chunk[3][3][0].decode()
            told = file.schema.column(place)
            is_list = told.max_repetition_level > 0
            optional = told.max_definition_level > (1 if is_list else 0)
            if is_list:
                optional = file.schema_arrow.field(name).nullable
            try:
                check_chunk(data, chunk, group[3], columns(number, name), optional, is_list)
            except Unclear as found:
                raise Unclear(f"column {name}, row group {number}: {found}") from None


def false_claim(data: bytes, file, columns) -> str | None:
    """`file` is the open pyarrow.parquet.ParquetFile; `columns(row_group, name)` gives a column's values, numbers for times."""
    try:
        check(data, file, columns)
        return None
    except Unclear as found:
        return str(found)
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        return f"the metadata cannot be read: {error!r}"
