# Block lists: cards, phones, e-mails, app identifiers, devices and tills from which nothing is taken. Included by ledger/_core.pyx.
# Not for members (the ladder in ledger/_core_limits.pxi). A row is a hash, of a whole text or of its beginning; an entry says which come and go.

cdef enum:                      # BlockKind: 2..5 are MemberKind
    BLOCK_DEVICE = 6
    BLOCK_TILL = 7              # STORE/TILL
    BLOCK_KINDS = 8
    BLOCK_PREFIX = 0x80         # beside the kind: everything that begins so
    BLOCK_TEXT_MAX = 128
    FACT_BLOCK = 14

cdef struct BlockRow:
    uint8_t kind                # and BLOCK_PREFIX
    uint8_t size                # bytes of a beginning; 0: a whole text
    uint64_t hash


cdef bint blocks_open(Core* core) noexcept nogil:
    return reservations_open(&core.blocks, BLOCKS_MAX)


cdef Hash128 block_fact(uint64_t hash, uint32_t what) noexcept nogil:
    return fact_hash(FACT_BLOCK, hash, what, 0, 0, 0)


cdef uint64_t block_hash(const Core* core, uint8_t kind, Slice text, uint32_t size) noexcept nogil:
    # Of the first `size` bytes; 0: of all of a text that names a member or device. Never 0. Tills are no secret.
    cdef uint8_t[1 + BLOCK_TEXT_MAX] buffer
    cdef Hash128 hashed
    if size == 0 and kind <= MEMBER_BY_APP:
        if not identity_hash(core.identity_key, kind, text, &hashed):
            return 0
        return hashed.lo | (hashed.lo == 0)
    buffer[0] = kind | (BLOCK_PREFIX if size != 0 else 0)
    size = size if size != 0 else text.size
    memcpy(buffer + 1, text.data, size)
    if kind == BLOCK_TILL:
        hashed = siphash(PUBLIC_KEY, buffer, 1 + size)
    else:
        hashed = siphash(core.identity_key, buffer, 1 + size)
    return hashed.lo | (hashed.lo == 0)


cdef bint block_parse(const Core* core, Slice said, BlockRow* row) noexcept nogil:
    # KIND:TEXT, or KIND:TEXT* for everything that begins so. False: it is neither.
    cdef Slice text
    cdef uint32_t i = 0
    cdef uint8_t kind = 0
    while i < said.size and said.data[i] != c':':
        i += 1
    if i == 4 and memcmp(said.data, b"card", 4) == 0:
        kind = MEMBER_BY_CARD
    elif i == 5 and memcmp(said.data, b"phone", 5) == 0:
        kind = MEMBER_BY_PHONE
    elif i == 5 and memcmp(said.data, b"email", 5) == 0:
        kind = MEMBER_BY_EMAIL
    elif i == 3 and memcmp(said.data, b"app", 3) == 0:
        kind = MEMBER_BY_APP
    elif i == 6 and memcmp(said.data, b"device", 6) == 0:
        kind = BLOCK_DEVICE
    elif i == 4 and memcmp(said.data, b"till", 4) == 0:
        kind = BLOCK_TILL
    if kind == 0 or i + 1 >= said.size or said.size - i - 1 > BLOCK_TEXT_MAX:
        return False
    text.data = said.data + i + 1
    text.size = said.size - i - 1
    row.kind = kind
    row.size = 0
    if text.data[text.size - 1] == c'*':
        # Phones and e-mails are normalised before they are hashed, so their beginnings are not what was sent.
        text.size -= 1
        if text.size == 0 or text.size >= BLOCK_PREFIX_MAX or kind == MEMBER_BY_PHONE or kind == MEMBER_BY_EMAIL:
            return False
        row.kind |= BLOCK_PREFIX
        row.size = <uint8_t>text.size
    elif kind == BLOCK_TILL:
        i = 0
        while i < text.size and text.data[i] != c'/':
            i += 1
        if i == 0 or i + 1 >= text.size:
            return False
    row.hash = block_hash(core, kind, text, row.size)
    return row.hash != 0


cdef bint check_blocks(const Core* core, const Command* command, Outcome* outcome) noexcept nogil:
    # Of ChangeBlocks.
    cdef BlockRow row
    cdef uint32_t i
    if command.add_count + command.remove_count == 0:
        return refuse_number(outcome, FIELD_ADD, 0)
    for i in range(command.add_count):
        outcome.index = <int32_t>i
        if not block_parse(core, command.adds[i], &row):
            return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_ADD, command.adds[i])
    for i in range(command.remove_count):
        outcome.index = <int32_t>i
        if not block_parse(core, command.removes[i], &row):
            return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_REMOVE, command.removes[i])
    outcome.index = -1
    return check_by_hand(command, outcome)


cdef void put_block(EntryWriter* writer, const Core* core, Slice said, uint8_t op) noexcept nogil:
    cdef BlockRow row
    VERIFY(block_parse(core, said, &row))
    put_byte(writer, op)
    put_byte(writer, row.kind)
    put_byte(writer, row.size)
    put_bytes(writer, <const uint8_t*>&row.hash, 8)


cdef void write_blocks(EntryWriter* writer, const Core* core, const Command* command, uint64_t version) noexcept nogil:
    cdef uint32_t i
    section_begin(writer, SECTION_BLOCKS)
    put_varint(writer, version)
    for i in range(command.add_count):
        put_block(writer, core, command.adds[i], 1)
    for i in range(command.remove_count):
        put_block(writer, core, command.removes[i], 2)
    section_end(writer)


cdef uint16_t differing_blocks(const Core* core, const Command* command, const EntryView* view) noexcept nogil:
    # In which list a repeat differs; 0: in none.
    cdef const Slice* section = &view.sections[SECTION_BLOCKS]
    cdef Cursor cursor
    cdef BlockRow row
    cdef const uint8_t* hash
    cdef uint32_t i
    cdef uint8_t op, kind, size
    if section.data == NULL:
        return FIELD_ADD
    cursor_open(&cursor, section)
    get_varint(&cursor)
    for i in range(command.add_count + command.remove_count):
        op = get_byte(&cursor)
        kind = get_byte(&cursor)
        size = get_byte(&cursor)
        hash = get_bytes(&cursor, 8)
        block_parse(core, command.adds[i] if i < command.add_count else command.removes[i - command.add_count], &row)
        if hash == NULL or op != (1 if i < command.add_count else 2) or kind != row.kind or size != row.size or memcmp(hash, &row.hash, 8) != 0:
            return FIELD_ADD if i < command.add_count else FIELD_REMOVE
    return FIELD_REMOVE if cursor_more(&cursor) else 0


cdef void execute_blocks(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # ChangeBlocks.
    cdef EntryWriter writer
    if core.stats.blocks + command.add_count > BLOCKS_MAX:
        refuse(outcome, STATUS_TABLE_FULL, 0, 0)
        return
    fill_header(core, entry_begin(&writer, entry), KIND_CHANGE_BLOCKS, d)
    write_context(&writer, command, d)
    write_blocks(&writer, core, command, core.stats.blocks_version + 1)
    finish_write(core, entry, entry_finish(&writer), outcome)


cdef void set_block(Core* core, const BlockRow* row, bint blocked) noexcept nogil:
    # What is there already, or not there, stays so.
    cdef uint32_t what = row.kind | <uint32_t>row.size << 8
    cdef bint known = reservations_find(&core.blocks, row.hash) >= 0
    if known == blocked:
        return
    if blocked:
        reservations_add(&core.blocks, row.hash, what)
        digest_add(&core.digest, block_fact(row.hash, what))
        core.stats.blocks += 1
        core.block_sizes[row.kind & (BLOCK_KINDS - 1)][row.size] += 1
        return
    what = <uint32_t>reservations_find(&core.blocks, row.hash)
    reservations_remove(&core.blocks, row.hash)
    digest_sub(&core.digest, block_fact(row.hash, what))
    core.stats.blocks -= 1
    core.block_sizes[what & (BLOCK_KINDS - 1)][what >> 8] -= 1


cdef inline bint block_read(Cursor* cursor, BlockRow* row) noexcept nogil:
    cdef const uint8_t* hash
    row.kind = get_byte(cursor)
    row.size = get_byte(cursor)
    hash = get_bytes(cursor, 8)
    if hash == NULL or row.kind & (BLOCK_KINDS - 1) < MEMBER_BY_CARD or row.kind & ~<uint32_t>BLOCK_PREFIX >= BLOCK_KINDS or row.size >= BLOCK_PREFIX_MAX:
        return False
    memcpy(&row.hash, hash, 8)
    return row.hash != 0 and (row.kind & BLOCK_PREFIX != 0) == (row.size != 0)


cdef int apply_blocks(Core* core, const Slice* section) noexcept nogil:
    cdef Cursor cursor
    cdef BlockRow row
    cdef uint8_t op
    cdef uint64_t version
    if section.data == NULL:
        return APPLY_FRAMING
    cursor_open(&cursor, section)
    version = get_varint(&cursor)
    if version != core.stats.blocks_version + 1:
        return APPLY_SEQUENCE
    while cursor_more(&cursor):
        op = get_byte(&cursor)
        if not block_read(&cursor, &row) or op < 1 or op > 2:
            return APPLY_FRAMING
        if op == 1 and core.stats.blocks >= BLOCKS_MAX:
            return APPLY_FULL
        set_block(core, &row, op == 1)
    core.stats.blocks_version = version
    return APPLY_FRAMING if cursor.broken else APPLY_OK


cdef bint is_blocked(const Core* core, uint8_t kind, Slice text, const Hash128* identity) noexcept nogil:
    # Whether a text, or one of its beginnings of the lengths that the list has, is on it. identity: of an identifier; else NULL.
    cdef const uint32_t* sizes = core.block_sizes[kind]
    cdef uint64_t hash
    cdef uint32_t size
    if text.size == 0 or text.size > BLOCK_TEXT_MAX:
        return False
    if sizes[0] != 0:
        hash = identity.lo | (identity.lo == 0) if identity != NULL else block_hash(core, kind, text, 0)
        if reservations_find(&core.blocks, hash) >= 0:
            return True
    for size in range(1u, <uint32_t>BLOCK_PREFIX_MAX):
        if sizes[size] != 0 and size <= text.size and reservations_find(&core.blocks, block_hash(core, kind, text, size)) >= 0:
            return True
    return False


cdef bint comes_blocked(const Core* core, const Command* command, const Decision* d) noexcept nogil:
    # Whether a command comes by a blocked identifier, or from a blocked till or device.
    cdef uint8_t[STORE_BYTES_MAX + TILL_BYTES_MAX + 1] buffer
    cdef const Slice* store = &command.store if command.given & GIVEN_RECEIPT_KEY else &command.origin[ORIGIN_STORE]
    cdef const Slice* till = &command.till if command.given & GIVEN_RECEIPT_KEY else &command.origin[ORIGIN_TILL]
    cdef Slice place
    cdef uint32_t i
    if core.stats.blocks == 0:
        return False
    if command.member.kind >= MEMBER_BY_CARD and is_blocked(core, command.member.kind, command.member.text, &d.member_hash):
        return True
    if command.method == METHOD_ENROLL:
        for i in range(command.identifier_count):
            if command.identifiers[i].kind >= MEMBER_BY_CARD and is_blocked(core, command.identifiers[i].kind, command.identifiers[i].text,
                                                                            &d.identifiers[i]):
                return True
    if is_blocked(core, BLOCK_DEVICE, command.origin[ORIGIN_DEVICE], NULL):
        return True
    if store.size == 0 or till.size == 0 or store.size > STORE_BYTES_MAX or till.size > TILL_BYTES_MAX:
        return False
    memcpy(buffer, store.data, store.size)
    buffer[store.size] = c'/'
    memcpy(buffer + store.size + 1, till.data, till.size)
    place.data = buffer
    place.size = store.size + 1 + till.size
    return is_blocked(core, BLOCK_TILL, place, NULL)
