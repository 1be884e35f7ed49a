# The programmes of the core: images in memory, which one is in force, how one is published. Included by ledger/_core.pyx.
# Not for what an image says (ledger/_programme.pxd) nor for compiling (ledger/engine.py, server/rules.py).
#
# A version is in force from its entry or from the moment that its entry names. The switch is a pointer, set between two commands; it follows
# from the entries and their times alone, so that replay switches where the service did. Images are loaded by whoever publishes, outside the
# hot thread; one that came in parts and is replayed is put together here. An image stays PROGRAM_KEPT_S behind its time, for quotes.
#
# Included behind _core_decide.pxi; `post`, `refuse` and the keys are those of every write.

cdef struct Version:            # 16 bytes
    uint64_t sequence           # of its PROGRAM entry
    int64_t effective_us        # server time from which it is in force, if no later one is by then

cdef struct Coming:             # a version that waits for its moment
    int64_t effective_us
    uint32_t version
    Loaded* loaded

cdef struct Assembly:           # an image of which some parts were there
    uint8_t[32] hash
    uint32_t size               # 0: none
    uint32_t filled
    uint8_t* bytes              # NULL: nobody needs them, the image is loaded

cdef struct Published:          # a PUBLISHED section, as far as the core reads it
    int64_t asked_us            # 0: at once
    uint64_t again
    const uint8_t* content      # 8 bytes
    const uint8_t* hash         # 32 bytes
    uint32_t size
    uint32_t wallet_count
    WalletDefinition[WALLETS_MAX] wallets

cdef struct Programmes:
    Loaded* images              # all in memory
    uint32_t image_count
    Loaded* in_force
    Loaded* retired             # nothing leads to them any more; freed outside the hot thread
    bint served                 # somebody takes the retired ones; else they are freed at once
    Loaded* offered             # of the order at hand: loaded, and not in `images`
    Coming[PROGRAMS_COMING_MAX] coming     # by moment, then by version
    uint32_t coming_count
    Version* versions           # VERSIONS_MAX of them, by number - 1
    uint32_t wallet_count       # of all versions: wallets are only ever added
    WalletDefinition[WALLETS_MAX] wallets
    Assembly assembly


cdef bint programmes_open(Programmes* p) noexcept nogil:
    p.versions = <Version*>reserve_memory(VERSIONS_MAX * sizeof(Version))
    return p.versions != NULL


cdef void programmes_close(Programmes* p) noexcept nogil:
    loaded_free_all(p.images)
    loaded_free_all(p.retired)
    free(p.assembly.bytes)
    unreserve_memory(p.versions, VERSIONS_MAX * sizeof(Version))


cdef void retire(Programmes* p, int64_t now_us) noexcept nogil:
    # Takes out what no version, no moment to come and no quote leads to.
    cdef Loaded** link = &p.images
    cdef Loaded* loaded
    while link[0] != NULL:
        loaded = link[0]
        if loaded.users != 0 or now_us - loaded.until_us <= <int64_t>PROGRAM_KEPT_S * MICROSECONDS:
            link = &loaded.next
            continue
        link[0] = loaded.next
        p.image_count -= 1
        if p.served:
            loaded.next = p.retired
            p.retired = loaded
        else:
            loaded_free(loaded)


cdef void add_wallets(Program* program, const WalletDefinition* wallets, uint32_t count) noexcept nogil:
    # Wallets that later versions brought stay: members may have points in them.
    cdef uint32_t i
    for i in range(program.wallet_count, count):
        program.wallets[i] = wallets[i]
    if count > program.wallet_count:
        program.wallet_count = count


cdef void put_in_force(Core* core, Loaded* loaded, uint32_t version, int64_t from_us) noexcept nogil:
    cdef Programmes* p = &core.programmes
    if p.in_force != NULL:
        p.in_force.users -= 1
        p.in_force.until_us = from_us
    add_wallets(&loaded.program, p.wallets, p.wallet_count)
    loaded.program.version = version
    p.in_force = loaded
    counting_of(<const Program2*>loaded.program.rules, &core.counting)
    core.program = &loaded.program
    core.now_day.until_us = 0
    core.now_day.from_us = 1
    core.other_day = core.now_day
    core.age_day = core.now_day


cdef void switch_programme(Core* core, int64_t now_us) noexcept nogil:
    # Those whose moment has come, in their order.
    cdef Programmes* p = &core.programmes
    cdef Coming due
    cdef uint32_t i
    while p.coming_count != 0 and p.coming[0].effective_us <= now_us:
        due = p.coming[0]
        p.coming_count -= 1
        for i in range(p.coming_count):
            p.coming[i] = p.coming[i + 1]
        put_in_force(core, due.loaded, due.version, due.effective_us)


cdef inline void programme_of(Core* core, int64_t now_us) noexcept nogil:
    # Before anything is decided or applied at this server time.
    if core.programmes.coming_count != 0:
        switch_programme(core, now_us)


cdef const Program* core_program_by_hash(const Core* core, const uint8_t* hash, uint32_t size) noexcept nogil:
    cdef const Loaded* loaded = loaded_find(core.programmes.images, hash, size)
    return &loaded.program if loaded != NULL else NULL


# --- applying -----------------------------------------------------------------------------------------------------

cdef bint published_read(const Slice* section, Published* published) noexcept nogil:
    cdef Cursor cursor
    cdef Slice name
    cdef uint64_t size, count
    cdef uint32_t i
    memset(published, 0, sizeof(Published))
    cursor_open(&cursor, section)
    published.asked_us = get_signed(&cursor)
    published.again = get_varint(&cursor)
    published.content = get_bytes(&cursor, 8)
    published.hash = get_bytes(&cursor, 32)
    size = get_varint(&cursor)
    count = get_varint(&cursor)
    if cursor.broken or size < LOADED_BYTES_MIN or size > IMAGE_BYTES_MAX or count == 0 or count > WALLETS_MAX:
        return False
    published.size = <uint32_t>size
    published.wallet_count = <uint32_t>count
    for i in range(published.wallet_count):
        name = get_text(&cursor)
        if name.size == 0 or name.size > WALLET_NAME_BYTES_MAX:
            return False
        memcpy(published.wallets[i].name, name.data, name.size)
        published.wallets[i].name_size = name.size
        published.wallets[i].scale = get_byte(&cursor)
    return not cursor.broken


cdef Loaded* image_of(Core* core, const EntryView* view, const Published* published) noexcept nogil:
    # The image that a PROGRAM entry names: in memory, in the entry, or in parts. New ones join those in memory. NULL: there is none that loads.
    cdef Programmes* p = &core.programmes
    cdef const Slice* image = &view.sections[SECTION_IMAGE]
    cdef const uint8_t* hash = published.hash
    cdef Loaded* loaded
    if image.data != NULL and image.size >= LOADED_BYTES_MIN and hash == NULL:
        hash = image.data + LOADED_HASH_AT
    if hash == NULL:
        return NULL
    loaded = loaded_find(p.images, hash, 32)
    if loaded != NULL:
        return loaded
    if p.offered != NULL and memcmp(p.offered.image + LOADED_HASH_AT, hash, 32) == 0:
        loaded = p.offered
        p.offered = NULL
    elif image.data != NULL:
        loaded = loaded_copy(image.data, image.size)
    elif p.assembly.filled == p.assembly.size and p.assembly.bytes != NULL and memcmp(p.assembly.hash, hash, 32) == 0:
        loaded = loaded_take(p.assembly.bytes, p.assembly.size)
        p.assembly.bytes = NULL
    if loaded == NULL or memcmp(loaded.image + LOADED_HASH_AT, hash, 32) != 0:
        loaded_free(loaded)
        return NULL
    loaded.until_us = INT64_MAX
    loaded.next = p.images
    p.images = loaded
    p.image_count += 1
    return loaded


cdef void assembly_end(Assembly* assembly) noexcept nogil:
    free(assembly.bytes)
    memset(assembly, 0, sizeof(Assembly))


cdef void keep_wallets(Programmes* p, const WalletDefinition* wallets, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(p.wallet_count, count):
        p.wallets[i] = wallets[i]
    if count > p.wallet_count:
        p.wallet_count = count


cdef int apply_program(Core* core, const EntryView* view) noexcept nogil:
    cdef Programmes* p = &core.programmes
    cdef const Slice* check = &view.sections[SECTION_KEY_CHECK]
    cdef int64_t time_us = view.header.time_us
    cdef Published published
    cdef Hash128 expected
    cdef Loaded* loaded
    cdef Version* version
    cdef uint32_t at
    if check.data != NULL and core.has_key:
        expected = key_check(core)
        if check.size != 16 or memcmp(check.data, &expected, 16) != 0:
            return APPLY_KEY
    if check.data != NULL and check.size == 16:
        memcpy(&core.begun_with, check.data, 16)
        core.has_begun = True
    memset(&published, 0, sizeof(Published))
    if view.sections[SECTION_PUBLISHED].data != NULL and not published_read(&view.sections[SECTION_PUBLISHED], &published):
        return APPLY_PROGRAM
    if core.program_count >= VERSIONS_MAX:
        return APPLY_FULL
    loaded = image_of(core, view, &published)
    if loaded == NULL or loaded.program.wallet_count < 1:
        return APPLY_PROGRAM
    assembly_end(&p.assembly)
    keep_wallets(p, loaded.program.wallets, loaded.program.wallet_count)
    keep_wallets(p, published.wallets, published.wallet_count)
    version = &p.versions[core.program_count]
    version.sequence = core.stats.sequence + 1
    version.effective_us = max_i64(published.asked_us, time_us)
    store_u32(&core.program_count, core.program_count + 1)
    loaded.users += 1
    if published.asked_us <= time_us:
        put_in_force(core, loaded, core.program_count, time_us)
    else:
        if p.coming_count == PROGRAMS_COMING_MAX:
            return APPLY_FULL
        at = p.coming_count
        while at > 0 and p.coming[at - 1].effective_us > published.asked_us:
            p.coming[at] = p.coming[at - 1]
            at -= 1
        p.coming[at].effective_us = published.asked_us
        p.coming[at].version = core.program_count
        p.coming[at].loaded = loaded
        p.coming_count += 1
    loaded = p.images
    while loaded != NULL:
        add_wallets(&loaded.program, p.wallets, p.wallet_count)
        loaded = loaded.next
    retire(p, time_us)
    return APPLY_OK


cdef int apply_part(Core* core, const Slice* section) noexcept nogil:
    # Parts come in their order. One from the beginning starts anew: whoever sent the others has given up.
    cdef Programmes* p = &core.programmes
    cdef Assembly* assembly = &p.assembly
    cdef Cursor cursor
    cdef const uint8_t* hash
    cdef const uint8_t* data
    cdef uint64_t size, offset, count
    if section.data == NULL:
        return APPLY_FRAMING
    cursor_open(&cursor, section)
    hash = get_bytes(&cursor, 32)
    size = get_varint(&cursor)
    offset = get_varint(&cursor)
    count = <uint64_t>(cursor.end - cursor.at)
    data = get_bytes(&cursor, <uint32_t>count)
    if cursor.broken or count == 0 or size < LOADED_BYTES_MIN or size > IMAGE_BYTES_MAX or offset > size or count > size - offset:
        return APPLY_PROGRAM
    if offset == 0:
        assembly_end(assembly)
        if p.offered == NULL or memcmp(p.offered.image + LOADED_HASH_AT, hash, 32) != 0:
            assembly.bytes = <uint8_t*>malloc(size)
            if assembly.bytes == NULL:
                return APPLY_FULL
        memcpy(assembly.hash, hash, 32)
        assembly.size = <uint32_t>size
    elif size != assembly.size or offset != assembly.filled or memcmp(assembly.hash, hash, 32) != 0:
        return APPLY_PROGRAM
    if assembly.bytes != NULL:
        memcpy(assembly.bytes + offset, data, count)
    assembly.filled = <uint32_t>(offset + count)
    return APPLY_OK


# --- publishing ---------------------------------------------------------------------------------------------------

cdef uint16_t differing_order(const Command* command, const EntryView* view, const Context* context) noexcept nogil:
    # In which field a publishing differs from that of the entry; 0: in none.
    cdef const RulesOrder* order = command.order
    cdef Published published
    if view.sections[SECTION_PUBLISHED].data == NULL or not published_read(&view.sections[SECTION_PUBLISHED], &published):
        return FIELD_METHOD
    if published.again != order.again:
        return FIELD_VERSION
    if memcmp(published.content, order.content, 8) != 0:
        return FIELD_SOURCE
    if published.asked_us != order.effective_us:
        return FIELD_EFFECTIVE_TIME
    if not text_equal(context.operator_name, order.operator_name):
        return FIELD_OPERATOR
    return 0 if text_equal(context.reason, order.reason) else FIELD_REASON


cdef uint32_t write_part(Core* core, const Decision* d, const Loaded* loaded, uint32_t offset, uint32_t count, uint8_t* entry) noexcept nogil:
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry)
    memset(header, 0, ENTRY_HEADER_BYTES)
    header.kind = KIND_PROGRAM_PART
    header.time_us = d.now_us
    header.program = core.program.version if core.program != NULL else 0
    section_begin(&writer, SECTION_PART)
    put_bytes(&writer, loaded.image + LOADED_HASH_AT, 32)
    put_varint(&writer, loaded.size)
    put_varint(&writer, offset)
    put_bytes(&writer, loaded.image + offset, count)
    section_end(&writer)
    return entry_finish(&writer)


cdef void write_published(EntryWriter* writer, int64_t asked_us, uint64_t again, const uint8_t* content, const uint8_t* image, uint32_t size,
                          const Slice* told) noexcept nogil:
    section_begin(writer, SECTION_PUBLISHED)
    put_signed(writer, asked_us)
    put_varint(writer, again)
    put_bytes(writer, content, 8)
    put_bytes(writer, image + LOADED_HASH_AT, 32)
    put_varint(writer, size)
    put_bytes(writer, told.data, told.size)
    section_end(writer)


cdef uint32_t write_publication(Core* core, const Decision* d, const RulesOrder* order, const Loaded* loaded, uint8_t* entry) noexcept nogil:
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry)
    fill_header(core, header, KIND_PROGRAM, d)
    section_begin(&writer, SECTION_CONTEXT)
    put_tag(&writer, CONTEXT_SENT_TIME, order.sent_time_us - d.now_us)
    put_tag_text(&writer, CONTEXT_OPERATOR, order.operator_name)
    put_tag_text(&writer, CONTEXT_REASON, order.reason)
    section_end(&writer)
    if order.whole:
        section_begin(&writer, SECTION_IMAGE)
        put_bytes(&writer, loaded.image, loaded.size)
        section_end(&writer)
    if order.again == 0:
        section_begin(&writer, SECTION_SOURCE)
        put_bytes(&writer, order.source.data, order.source.size)
        section_end(&writer)
    write_published(&writer, order.effective_us, order.again, order.content, loaded.image, loaded.size, &order.told)
    return entry_finish(&writer)


cdef bint assembled_until(const Programmes* p, const uint8_t* hash, uint32_t filled) noexcept nogil:
    return p.assembly.filled == filled and memcmp(p.assembly.hash, hash, 32) == 0


cdef void tell_order(const Core* core, Outcome* outcome) noexcept nogil:
    # What its entry says, if it has one.
    cdef const EntryHeader* header = <const EntryHeader*>outcome.entry
    cdef uint32_t low = 0, high = core.program_count, middle
    if header == NULL:
        return
    outcome.rules.sequence = outcome.sequence
    outcome.rules.time_us = header.time_us
    outcome.rules.replayed = outcome.replayed
    outcome.rules.before = header.program
    while low < high:
        middle = (low + high) >> 1
        if core.programmes.versions[middle].sequence < outcome.sequence:
            low = middle + 1
        else:
            high = middle
    if low < core.program_count and core.programmes.versions[low].sequence == outcome.sequence:
        outcome.rules.version = low + 1


cdef void execute_order(Core* core, const Command* command, int64_t now_us, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # What the control port asks for to publish rules. It has checked what it asks for; whether it was asked before, and when, is known here.
    cdef Programmes* p = &core.programmes
    cdef const RulesOrder* order = command.order
    cdef Loaded* loaded = <Loaded*>order.loaded
    cdef Loaded* known
    cdef Decision* d = &core.decision
    cdef uint32_t size
    memset(&outcome.rules, 0, sizeof(RulesAnswer))
    d.now_us = max_i64(now_us, core.stats.time_us)
    d.member = 0
    d.named = 0
    d.receipt_keyed = 0
    memset(&d.request, 0, sizeof(Hash128))
    if order.request_size != 0:
        if not check_request_id(command.request_id, outcome):
            return
        d.request = siphash(PUBLIC_KEY, command.request_id.data, command.request_id.size)
        if was_asked(core, command, d, outcome):
            tell_order(core, outcome)
            return
        if command.sent_time_us < SENT_TIME_MIN_US or command.sent_time_us > d.now_us + <int64_t>CLOCK_AHEAD_S_MAX * MICROSECONDS:
            refuse_number(outcome, FIELD_SENT_TIME, command.sent_time_us)
            return
    if core.full:
        refuse(outcome, STATUS_JOURNAL_FULL, core.full_free_bytes, core.full_free_bytes_min)
        return
    if not core_keys_room(core):
        refuse(outcome, STATUS_IDS_BEHIND, 0, 0)
        return
    if core.program_count >= VERSIONS_MAX:
        refuse(outcome, STATUS_RULES_LIMIT, VERSIONS_MAX, 0)
        return
    known = loaded_find(p.images, order.hash, 32)
    if p.image_count >= PROGRAMS_KEPT_MAX and known == NULL:
        # Those whose time is over leave with the next publishing: this one.
        retire(p, d.now_us)
        if p.image_count >= PROGRAMS_KEPT_MAX:
            refuse(outcome, STATUS_RULES_LIMIT, PROGRAMS_KEPT_MAX, 0)
            return
    if order.effective_us > d.now_us and p.coming_count >= PROGRAMS_COMING_MAX:
        refuse(outcome, STATUS_RULES_LIMIT, PROGRAMS_COMING_MAX, 0)
        return
    if (order.kind == ORDER_PART and order.offset != 0 and not assembled_until(p, order.hash, order.offset)) or (
            order.kind == ORDER_PUBLISH and loaded != NULL and known == NULL and not order.whole
            and not assembled_until(p, order.hash, loaded.size)):
        refuse(outcome, STATUS_NOT_READY, 0, 0)     # another publishing went between its parts
        return
    if order.kind == ORDER_PUBLISH and loaded == NULL and known == NULL:
        refuse(outcome, STATUS_NOT_READY, 0, 0)
        return
    outcome.rules.in_memory = known != NULL
    if order.kind == ORDER_PART or order.kind == ORDER_PUBLISH:
        p.offered = loaded
        if order.kind == ORDER_PART:
            size = loaded.size - order.offset
            size = write_part(core, d, loaded, order.offset, size if size < PROGRAM_PART_BYTES else PROGRAM_PART_BYTES, entry)
        else:
            size = write_publication(core, d, order, loaded if loaded != NULL else known, entry)
        finish_write(core, entry, size, outcome)
        outcome.rules.taken = loaded != NULL and p.offered == NULL
        p.offered = NULL
    tell_order(core, outcome)
    outcome.rules.retired = <uint64_t><uintptr_t>p.retired
    p.retired = NULL


cdef uint32_t core_write_part(Core* core, int64_t now_us, const uint8_t* image, uint32_t image_size, uint32_t offset, uint32_t count,
                              uint8_t* entry) noexcept nogil:
    cdef Loaded loaded
    cdef Decision* d = &core.decision
    cdef uint32_t size
    d.now_us = max_i64(now_us, core.stats.time_us)
    loaded.image = <uint8_t*>image
    loaded.size = image_size
    size = write_part(core, d, &loaded, offset, count, entry)
    return size if core_apply(core, entry, size) == APPLY_OK else 0


cdef uint32_t core_write_program(Core* core, int64_t now_us, const uint8_t* image, uint32_t image_size, const uint8_t* source,
                                 uint32_t source_size, const Slice* told, bint first, uint8_t* entry) noexcept nogil:
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry)
    cdef uint8_t[8] content
    cdef Hash128 check
    cdef uint32_t size
    cdef bint whole = image_size <= IMAGE_INLINE_BYTES_MAX
    if source_size > SOURCE_BYTES_MAX or image_size < LOADED_BYTES_MIN or told.size > RULES_TOLD_BYTES_MAX:
        return 0
    memset(header, 0, ENTRY_HEADER_BYTES)
    memset(content, 0, 8)
    header.kind = KIND_PROGRAM
    header.time_us = max_i64(now_us, core.stats.time_us)
    header.program = core.program.version if core.program != NULL else 0
    if whole:
        section_begin(&writer, SECTION_IMAGE)
        put_bytes(&writer, image, image_size)
        section_end(&writer)
    section_begin(&writer, SECTION_SOURCE)
    put_bytes(&writer, source, source_size)
    section_end(&writer)
    if first:
        check = key_check(core)
        section_begin(&writer, SECTION_KEY_CHECK)
        put_bytes(&writer, <const uint8_t*>&check, 16)
        section_end(&writer)
    if told.size != 0:
        write_published(&writer, 0, 0, content, image, image_size, told)
    size = entry_finish(&writer)
    return size if core_apply(core, entry, size) == APPLY_OK else 0


cdef Hash128 key_check(const Core* core) noexcept nogil:
    return siphash(core.identity_key, <const uint8_t*>b"daybook key check", 17)


cdef void core_set_served(Core* core) noexcept nogil:
    core.programmes.served = True


cdef uint32_t core_versions(const Core* core, uint32_t from_version, uint64_t* sequences, int64_t* effective_us, uint32_t count) noexcept nogil:
    cdef uint32_t i, known = load_u32(&core.program_count)
    for i in range(count):
        if from_version + i > known:
            return i
        sequences[i] = core.programmes.versions[from_version + i - 1].sequence
        effective_us[i] = core.programmes.versions[from_version + i - 1].effective_us
    return count
