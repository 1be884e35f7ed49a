# The core's state as chunks of bytes and back (docs/journal-format.md, The snapshot). Included by ledger/_core.pyx.
# Not for files and hashes (ledger/_snapshot.pyx). Lists are compact and in table order, so that the way back is nearly
# sequential in tables of any size; whoever loads has checked the chunks' hashes, counts and places are checked here all the same.

cdef enum:
    ACCOUNT_RECORD_BYTES_MAX = 1_048_576    # 16 * 400 lots of up to 36 bytes, 32 reservations of 400 holds
    PROFILE_BYTES_MAX = 128     # without counters and days
    COUNTER_BYTES_MAX = 36
    DAY_BYTES_MAX = 26
    CAMPAIGN_BYTES_MAX = 24
    RUNG_BYTES_MAX = 24
    IMAGE_PIECE_BYTES = 1_048_576
    VERSIONS_BYTES_MAX = 2_097_152  # VERSIONS_MAX of 20 bytes, and the rest

cdef packed struct KeysHead:    # begins a chunk of SNAPSHOT_KEYS; KeySlots follow
    uint32_t table              # KeyKind
    uint32_t count              # slots in this chunk
    uint64_t keys               # of the whole generation
    uint64_t first_sequence     # it holds the keys of the entries from this one on
    uint64_t last_sequence      # to this one; 0: it is not full
    int64_t order_min
    int64_t order_max

cdef packed struct ImagePiece:  # begins a record of SNAPSHOT_IMAGES; `count` bytes follow
    uint8_t hash[32]
    int64_t until_us            # as in Loaded
    uint32_t size               # of the whole image
    uint32_t filled             # how much of it there is; less than the size: its parts are still coming
    uint32_t offset
    uint32_t count

cdef struct Saving:
    EntryWriter writer
    uint8_t* end                # of the buffer
    uint32_t section
    int code                    # of the first failed put
    SnapshotPut put
    void* owner


# --- saving -----------------------------------------------------------------------------------------------------------

cdef void saving_flush(Saving* saving) noexcept nogil:
    if saving.code == 0 and saving.writer.at != saving.writer.start:
        saving.code = saving.put(saving.owner, saving.section, saving.writer.start, <uint32_t>(saving.writer.at - saving.writer.start))
    saving.writer.at = saving.writer.start


cdef inline EntryWriter* saving_room(Saving* saving, uint32_t section, uint32_t size) noexcept nogil:
    # The writer, with room for a record of `size` bytes of that section.
    if section != saving.section or <uint64_t>(saving.end - saving.writer.at) < size:
        saving_flush(saving)
        saving.section = section
    return &saving.writer


cdef inline void put_lot(EntryWriter* writer, const Lot* lot, const Lot* before) noexcept nogil:
    # Days as differences: lots are sorted, so these are small. before: NULL for the first.
    put_varint(writer, lot.wallet | <uint64_t>lot.funder << 8)
    put_signed(writer, lot.available_day - (<int64_t>before.available_day if before != NULL else 0))
    put_varint(writer, 0 if lot.expiry_day == DAY_NEVER else 1 + zigzag(<int64_t>lot.expiry_day - lot.available_day))
    put_varint(writer, <uint64_t>lot.points)
    put_varint(writer, <uint64_t>lot.held)


cdef void save_reservation(const Core* core, const SnapshotHead* head, const Reservation* reservation, EntryWriter* writer) noexcept nogil:
    cdef const Lot* holds = &core.arena.lots[reservation.holds]
    cdef uint32_t i
    put_varint(writer, head.sequence - reservation.id)
    put_byte(writer, reservation.state)
    put_varint(writer, reservation.member)
    put_varint(writer, reservation.wallet)
    put_varint(writer, <uint64_t>reservation.reserved_points)
    put_varint(writer, <uint64_t>reservation.captured_points)
    put_signed(writer, reservation.expire_time_us - head.time_us)
    put_varint(writer, reservation.hold_count)
    for i in range(reservation.hold_count):
        put_lot(writer, &holds[i], &holds[i - 1] if i != 0 else NULL)


cdef void save_account(const Core* core, const SnapshotHead* head, const Account* account, EntryWriter* writer) noexcept nogil:
    cdef const Lot* lots = &core.arena.lots[account.lots]
    cdef uint32_t i, index = account.reservations
    put_varint(writer, head.sequence - account.sequence)
    put_byte(writer, account.identifier_count)
    put_varint(writer, account.lot_count)
    for i in range(account.lot_count):
        put_lot(writer, &lots[i], &lots[i - 1] if i != 0 else NULL)
    put_byte(writer, <uint8_t>account.reservation_count)
    while index != NO_INDEX:
        save_reservation(core, head, &core.pool[index], writer)
        index = core.pool[index].next


cdef void save_profile(const Core* core, const Profile* profile, uint32_t member, EntryWriter* writer) noexcept nogil:
    cdef const Counter* counter
    cdef const MemberDay* day
    cdef uint32_t i
    put_varint(writer, member)
    put_signed(writer, profile.opened_day)
    put_varint(writer, profile.receipts)
    put_signed(writer, profile.first_day)
    put_signed(writer, profile.last_day)
    put_byte(writer, profile.tier)
    put_signed(writer, profile.tier_until)
    put_varint(writer, profile.birthday)
    put_signed(writer, profile.birthday_from)
    put_varint(writer, profile.segments[0])
    put_varint(writer, profile.segments[1])
    put_varint(writer, profile.chosen)
    put_varint(writer, profile.counter_count)
    for i in range(profile.counter_count):
        counter = &counters_of(core, profile)[i]
        put_key(writer, counter.counter)
        put_byte(writer, (counter.owner >> PER_SHIFT) | (0 if counter.window[1] == NO_WINDOW else 128))
        put_varint(writer, <uint64_t>counter.window[0])
        put_signed(writer, counter.value[0])
        if counter.window[1] != NO_WINDOW:
            put_varint(writer, <uint64_t>counter.window[1])
            put_signed(writer, counter.value[1])
    put_varint(writer, profile.day_count)
    for i in range(profile.day_count):
        day = &days_of(core, profile)[i]
        put_varint(writer, <uint64_t>(day.day - (days_of(core, profile)[i - 1].day if i != 0 else 0)))
        put_signed(writer, day.receipts)
        put_signed(writer, day.spent)


cdef void save_profiles(const Core* core, Saving* saving) noexcept nogil:
    # Of members that rules know; then the campaigns.
    cdef const Profile* profile
    cdef EntryWriter* writer
    cdef uint64_t i
    for i in range(core.stats.members):
        profile = &core.profiles[i]
        if profile.known and saving.code == 0:
            save_profile(core, profile, <uint32_t>i + 1, saving_room(
                saving, SNAPSHOT_PROFILES, PROFILE_BYTES_MAX + profile.counter_count * COUNTER_BYTES_MAX + profile.day_count * DAY_BYTES_MAX))
    for i in range(core.campaign_count):
        writer = saving_room(saving, SNAPSHOT_CAMPAIGNS, CAMPAIGN_BYTES_MAX)
        put_key(writer, core.campaigns[i].key)
        put_signed(writer, core.campaigns[i].points)
        put_signed(writer, core.campaigns[i].uses)


cdef void save_rungs(const Core* core, Saving* saving) noexcept nogil:
    cdef const Account* account
    cdef EntryWriter* writer
    cdef uint64_t i
    for i in range(core.stats.members):
        account = &core.accounts[i]
        if account.rung != RUNG_OK or account.rung_until_s != 0:
            writer = saving_room(saving, SNAPSHOT_RUNGS, RUNG_BYTES_MAX)
            put_varint(writer, i + 1)
            put_byte(writer, <uint8_t>account.rung)
            put_varint(writer, account.rung_until_s)


cdef void save_blocks(const Core* core, Saving* saving) noexcept nogil:
    # In table order; the version stands in front of each.
    cdef const ReservationSlot* slot
    cdef EntryWriter* writer
    cdef uint64_t at
    if core.stats.blocks_version == 0:
        return
    writer = saving_room(saving, SNAPSHOT_BLOCKS, 32)
    put_varint(writer, core.stats.blocks_version)
    put_varint(writer, core.stats.blocks)
    saving_flush(saving)
    for at in range(core.blocks.mask + 1):
        slot = &core.blocks.slots[at]
        if slot.id != 0:
            writer = saving_room(saving, SNAPSHOT_BLOCKS, 32)
            put_byte(writer, <uint8_t>(slot.index & 0xFF))
            put_byte(writer, <uint8_t>(slot.index >> 8))
            put_bytes(writer, <const uint8_t*>&slot.id, 8)


cdef void save_cases(const Core* core, Saving* saving) noexcept nogil:
    cdef EntryWriter* writer
    cdef uint32_t i
    for i in range(core.case_count):
        writer = saving_room(saving, SNAPSHOT_CASES, sizeof(Case))
        put_bytes(writer, <const uint8_t*>&core.cases[i], sizeof(Case))


cdef void save_velocity(const Core* core, Saving* saving) noexcept nogil:
    # What counts at the moment of the last entry.
    cdef const VelocityHead* slot
    cdef EntryWriter* writer
    cdef VelocityNow now
    cdef uint64_t at
    cdef uint32_t table
    velocity_now(&now, div_floor(core.stats.time_us, MICROSECONDS), counting_day(core.stats.time_us))
    for table in range(<uint32_t>VELOCITY_TABLES):
        at = 0
        while saving.code == 0:
            slot = velocity_next(&core.velocity, table, &at, &now)
            if slot == NULL:
                break
            writer = saving_room(saving, SNAPSHOT_VELOCITY, 1 + velocity_record_bytes(table, slot))
            put_byte(writer, <uint8_t>table)
            velocity_put(&core.velocity, table, slot, writer)
    writer = saving_room(saving, SNAPSHOT_VELOCITY_SUMS, VELOCITY_SUMS_BYTES_MAX)
    velocity_put_sums(&core.velocity, now.today, writer)


cdef void save_image(Saving* saving, const uint8_t* hash, const uint8_t* image, uint32_t size, uint32_t filled, int64_t until_us) noexcept nogil:
    cdef EntryWriter* writer
    cdef ImagePiece piece
    cdef uint32_t offset = 0
    memcpy(piece.hash, hash, 32)
    piece.until_us = until_us
    piece.size = size
    piece.filled = filled
    while offset < filled and saving.code == 0:
        piece.offset = offset
        piece.count = filled - offset if filled - offset < IMAGE_PIECE_BYTES else IMAGE_PIECE_BYTES
        writer = saving_room(saving, SNAPSHOT_IMAGES, sizeof(ImagePiece) + piece.count)
        put_bytes(writer, <const uint8_t*>&piece, sizeof(ImagePiece))
        put_bytes(writer, image + offset, piece.count)
        offset += piece.count


cdef void save_programmes(const Core* core, Saving* saving) noexcept nogil:
    # Images in memory, those of which parts are there, then which of them are in force, and when.
    cdef const Programmes* p = &core.programmes
    cdef const Loaded* loaded = p.images
    cdef EntryWriter* writer
    cdef uint64_t sequence = 0
    cdef int64_t effective_us = 0
    cdef Slice name
    cdef uint32_t i
    if core.program == NULL:
        return
    while loaded != NULL:
        save_image(saving, loaded.image + LOADED_HASH_AT, loaded.image, loaded.size, loaded.size, loaded.until_us)
        loaded = loaded.next
    if p.assembly.bytes != NULL:
        save_image(saving, p.assembly.hash, p.assembly.bytes, p.assembly.size, p.assembly.filled, 0)
    writer = saving_room(saving, SNAPSHOT_VERSIONS, VERSIONS_BYTES_MAX)
    put_varint(writer, core.program.version)
    put_bytes(writer, p.in_force.image + LOADED_HASH_AT, 32)
    put_varint(writer, p.coming_count)
    for i in range(p.coming_count):
        put_signed(writer, p.coming[i].effective_us)
        put_varint(writer, p.coming[i].version)
        put_bytes(writer, p.coming[i].loaded.image + LOADED_HASH_AT, 32)
    put_varint(writer, p.wallet_count)
    for i in range(p.wallet_count):
        name.data = <const uint8_t*>p.wallets[i].name
        name.size = p.wallets[i].name_size
        put_text(writer, name)
        put_byte(writer, <uint8_t>p.wallets[i].scale)
    for i in range(core.program_count):
        put_varint(writer, p.versions[i].sequence - sequence)
        put_signed(writer, p.versions[i].effective_us - effective_us)
        sequence = p.versions[i].sequence
        effective_us = p.versions[i].effective_us


cdef void save_identifiers(const IdentifierTable* table, Saving* saving) noexcept nogil:
    cdef EntryWriter* writer
    cdef uint64_t at
    for at in range(table.capacity):
        if table.slots[at].member != 0:
            writer = saving_room(saving, SNAPSHOT_IDENTIFIERS, sizeof(IdentifierSlot))
            put_bytes(writer, <const uint8_t*>&table.slots[at], sizeof(IdentifierSlot))


cdef void save_keys(const KeyTable* table, uint32_t kind, Saving* saving) noexcept nogil:
    # Generations oldest first; each chunk with the generation's own head.
    cdef const Generation* generation
    cdef KeysHead* keys
    cdef const KeySlot* slot
    cdef uint64_t at, number
    for number in range(table.dropped, table.full + 1):
        generation = generation_at(table, number)
        if generation.count == 0:
            continue
        keys = NULL
        for at in range(table.capacity):
            slot = &generation.slots[at]
            if slot.lo == 0 and slot.hi == 0:
                continue
            if keys == NULL or <uint64_t>(saving.end - saving.writer.at) < sizeof(KeySlot):
                saving_flush(saving)
                saving.section = SNAPSHOT_KEYS
                keys = <KeysHead*>saving.writer.at
                keys.table = kind
                keys.count = 0
                keys.keys = generation.count
                keys.first_sequence = generation.first_sequence
                keys.last_sequence = generation.last_sequence if number < table.full else 0
                keys.order_min = generation.order_min
                keys.order_max = generation.order_max
                saving.writer.at += sizeof(KeysHead)
            keys.count += 1
            put_bytes(&saving.writer, <const uint8_t*>slot, sizeof(KeySlot))
        saving_flush(saving)


cdef void core_describe(const Core* core, SnapshotHead* head) noexcept nogil:
    cdef const Account* account
    cdef uint64_t i
    cdef uint32_t index, kind
    memset(head, 0, sizeof(SnapshotHead))
    head.sequence = core.stats.sequence
    head.time_us = core.stats.time_us
    head.digest_sequence = core.digest_sequence
    head.digest = core_digest(core)
    head.begun_with = core.begun_with
    head.has_begun = core.has_begun
    head.program = core.program_count
    for kind in range(KEYS_COUNT):
        head.keys_from[kind] = core.keys[kind].keys_from
        head.forgotten[kind] = core.keys[kind].forgotten
        head.keys[kind] = keys_count(&core.keys[kind])
    head.members = core.stats.members
    head.identifiers = core.identifiers.count
    head.lots = core.stats.lots
    head.reservations_active = core.stats.reservations_active
    head.members_max = core.accounts_max
    head.ids_max = core.ids_max
    head.reservations_max = core.pool_max
    memcpy(head.issued_points, core.stats.issued_points, sizeof(head.issued_points))
    memcpy(head.redeemed_points, core.stats.redeemed_points, sizeof(head.redeemed_points))
    memcpy(head.expired_points, core.stats.expired_points, sizeof(head.expired_points))
    memcpy(head.adjusted_points, core.stats.adjusted_points, sizeof(head.adjusted_points))
    memcpy(head.reserved_total_points, core.stats.reserved_total_points, sizeof(head.reserved_total_points))
    for i in range(core.stats.members):
        account = &core.accounts[i]
        if account.lot_count != 0:
            head.lot_units += units_of(class_for(account.lot_count))
        index = account.reservations
        while index != NO_INDEX:
            head.lot_units += units_of(class_for(core.pool[index].hold_count))
            index = core.pool[index].next
        if core.profiles[i].known:
            head.profiles += 1
            if core.profiles[i].counter_count != 0:
                head.counter_units += units_of(class_for(core.profiles[i].counter_count))
            if core.profiles[i].day_count != 0:
                head.day_units += units_of(class_for(day_units(core.profiles[i].day_count)))
    head.counters = core.stats.counters
    head.days = core.stats.days
    head.campaigns = core.campaign_count
    index = core.finished_first
    while index != NO_INDEX:
        head.reservations_finished += 1
        index = core.pool[index].next


cdef int core_save(const Core* core, const SnapshotHead* head, uint8_t* buffer, SnapshotPut put, void* owner) noexcept nogil:
    cdef Saving saving
    cdef uint64_t i
    cdef uint32_t index = core.finished_first
    memset(&saving, 0, sizeof(Saving))
    saving.writer.start = buffer
    saving.writer.at = buffer
    saving.end = buffer + SNAPSHOT_CHUNK_BYTES
    saving.put = put
    saving.owner = owner
    save_programmes(core, &saving)
    while index != NO_INDEX and saving.code == 0:
        save_reservation(core, head, &core.pool[index], saving_room(&saving, SNAPSHOT_FINISHED, ACCOUNT_RECORD_BYTES_MAX))
        index = core.pool[index].next
    for i in range(core.stats.members):
        if saving.code != 0:
            return saving.code
        save_account(core, head, &core.accounts[i], saving_room(&saving, SNAPSHOT_ACCOUNTS, ACCOUNT_RECORD_BYTES_MAX))
    save_profiles(core, &saving)
    save_rungs(core, &saving)
    save_velocity(core, &saving)
    save_cases(core, &saving)
    save_blocks(core, &saving)
    save_identifiers(&core.identifiers, &saving)
    saving_flush(&saving)
    save_keys(&core.keys[KEYS_REQUEST], KEYS_REQUEST, &saving)
    save_keys(&core.keys[KEYS_RECEIPT], KEYS_RECEIPT, &saving)
    saving.section = SNAPSHOT_END
    put_varint(&saving.writer, head.sequence)
    saving_flush(&saving)
    return saving.code


# --- loading ----------------------------------------------------------------------------------------------------------

cdef int core_load_begin(Core* core, const SnapshotHead* head) noexcept nogil:
    cdef Hash128 expected
    cdef KeyTable* table
    cdef uint32_t kind
    if core.stats.sequence != 0 or core.stats.members != 0 or head.sequence == 0:
        return LOAD_BROKEN
    if head.has_begun and core.has_key:
        expected = key_check(core)
        if expected.lo != head.begun_with.lo or expected.hi != head.begun_with.hi:
            return LOAD_KEY
    if (head.members > core.accounts_max or head.identifiers > core.identifiers.count_max
            or head.lot_units >> BLOCK_SHIFT > core.arena.capacity or head.counter_units >> BLOCK_SHIFT > core.counters.capacity
            or head.day_units >> BLOCK_SHIFT > core.days.capacity):
        return LOAD_MEMBERS
    if head.campaigns > CAMPAIGNS_KEPT_MAX:
        return LOAD_BROKEN
    if head.reservations_active > core.pool_max:
        return LOAD_RESERVATIONS
    for kind in range(KEYS_COUNT):
        # Without runs (covered: no end) the snapshot's keys are all that is remembered; with runs the two must meet.
        table = &core.keys[kind]
        if table.covered != UINT64_MAX and head.keys_from[kind] > table.covered + 1:
            return LOAD_KEYS_GAP
        if head.keys_from[kind] > table.keys_from:
            keys_begin_at(table, head.keys_from[kind], max_i64(table.forgotten, head.forgotten[kind]))
    core.stats.sequence = head.sequence
    core.stats.time_us = head.time_us
    core.digest_sequence = head.digest_sequence
    core.begun_with = head.begun_with
    core.has_begun = head.has_begun
    memcpy(core.stats.issued_points, head.issued_points, sizeof(head.issued_points))
    memcpy(core.stats.redeemed_points, head.redeemed_points, sizeof(head.redeemed_points))
    memcpy(core.stats.expired_points, head.expired_points, sizeof(head.expired_points))
    memcpy(core.stats.adjusted_points, head.adjusted_points, sizeof(head.adjusted_points))
    memcpy(core.stats.reserved_total_points, head.reserved_total_points, sizeof(head.reserved_total_points))
    return LOAD_OK


cdef inline bint get_lot(Cursor* cursor, Lot* lot, const Lot* before) noexcept nogil:
    # False: the record is broken, or the lot does not stand behind the one before.
    cdef uint64_t place = get_varint(cursor), expiry
    cdef int64_t available = get_signed(cursor) + (<int64_t>before.available_day if before != NULL else 0)
    expiry = get_varint(cursor)
    lot.points = <int64_t>get_varint(cursor)
    lot.held = <int64_t>get_varint(cursor)
    lot.wallet = <uint16_t>(place & 0xFF)
    lot.funder = <uint16_t>(place >> 8)
    lot.available_day = <int32_t>available
    lot.expiry_day = DAY_NEVER if expiry == 0 else <int32_t>(available + unzigzag(expiry - 1))
    if cursor.broken or lot.wallet >= WALLETS_MAX or place >> 24 or lot.points <= 0 or lot.held < 0 or lot.held > lot.points:
        return False
    return before == NULL or lot_compare(before, lot.wallet, lot.expiry_day, lot.available_day, lot.funder) < 0


cdef int load_reservation(Core* core, const SnapshotHead* head, Cursor* cursor, Account* account, uint32_t member) noexcept nogil:
    # account: of an ACTIVE one, whose list it joins at the end; NULL: a finished one.
    cdef uint64_t id = head.sequence - get_varint(cursor), wallet
    cdef uint8_t state = get_byte(cursor)
    cdef uint64_t owner = get_varint(cursor)
    cdef Reservation* reservation
    cdef Reservation* last
    cdef uint32_t index, i, count, piece
    cdef uint8_t cls
    cdef Lot* holds
    wallet = get_varint(cursor)
    if cursor.broken or wallet >= WALLETS_MAX or id == 0 or id > head.sequence or (state == RESERVATION_ACTIVE) != (account != NULL):
        return LOAD_BROKEN
    if owner == 0 or owner > head.members or (account != NULL and owner != member):
        return LOAD_BROKEN
    if state < RESERVATION_ACTIVE or state > RESERVATION_EXPIRED or reservations_find(&core.reservation_map, id) >= 0:
        return LOAD_BROKEN
    index = pool_take(core)
    if index == NO_INDEX:
        return LOAD_RESERVATIONS
    reservation = &core.pool[index]
    reservation.id = id
    reservation.state = state
    reservation.member = <uint32_t>owner
    reservation.wallet = <uint16_t>wallet
    reservation.reserved_points = <int64_t>get_varint(cursor)
    reservation.captured_points = <int64_t>get_varint(cursor)
    reservation.expire_time_us = head.time_us + get_signed(cursor)
    count = <uint32_t>get_varint(cursor)
    reservation.hold_count = 0
    reservation.next = NO_INDEX
    reservation.previous = NO_INDEX
    if cursor.broken or reservation.reserved_points <= 0 or (account == NULL) != (count == 0) or count > CHANGES_MAX:
        return LOAD_BROKEN
    reservations_add(&core.reservation_map, id, index)
    if account == NULL:
        if core.finished_last != NO_INDEX:
            core.pool[core.finished_last].next = index
        else:
            core.finished_first = index
        core.finished_last = index
        return LOAD_OK
    cls = class_for(count)
    piece = arena_take(&core.arena, cls, index | OWNER_HOLD)
    if piece == NO_PIECE:
        return LOAD_MEMBERS
    reservation.holds = piece
    reservation.hold_class = cls
    reservation.hold_count = count
    holds = &core.arena.lots[piece]
    for i in range(count):
        if not get_lot(cursor, &holds[i], &holds[i - 1] if i != 0 else NULL):
            return LOAD_BROKEN
    index_into_list(core, account, index)
    core.heap[core.heap_count] = index
    reservation.heap_index = core.heap_count
    core.heap_count += 1
    heap_up(core, core.heap_count - 1)
    core.stats.reservations_active += 1
    core.stats.reserved_points[wallet] += reservation.reserved_points
    digest_add(&core.digest, reservation_fact(reservation))
    return LOAD_OK


cdef void index_into_list(Core* core, Account* account, uint32_t index) noexcept nogil:
    # At the end: the list was saved in its order.
    cdef uint32_t last = account.reservations
    account.reservation_count += 1
    if last == NO_INDEX:
        account.reservations = index
        return
    while core.pool[last].next != NO_INDEX:
        last = core.pool[last].next
    core.pool[last].next = index
    core.pool[index].previous = last


cdef int load_account(Core* core, const SnapshotHead* head, Cursor* cursor) noexcept nogil:
    cdef uint32_t member = <uint32_t>core.stats.members + 1
    cdef Account* account = &core.accounts[member - 1]
    cdef uint64_t behind, count
    cdef uint32_t i, piece, reservations
    cdef int32_t soonest = DAY_NEVER
    cdef uint8_t cls
    cdef Lot* lots
    cdef int result
    if member > head.members:
        return LOAD_BROKEN
    behind = get_varint(cursor)
    account.lots = NO_PIECE
    account.reservations = NO_INDEX
    account.sequence = head.sequence - behind
    account.identifier_count = get_byte(cursor)
    count = get_varint(cursor)
    if cursor.broken or behind >= head.sequence or count > CHANGES_MAX:
        return LOAD_BROKEN
    if count != 0:
        cls = class_for(<uint32_t>count)
        piece = arena_take(&core.arena, cls, member)
        if piece == NO_PIECE:
            return LOAD_MEMBERS
        account.lots = piece
        account.lot_class = cls
        account.lot_count = <uint16_t>count
        lots = &core.arena.lots[piece]
        for i in range(<uint32_t>count):
            if not get_lot(cursor, &lots[i], &lots[i - 1] if i != 0 else NULL):
                return LOAD_BROKEN
            if lots[i].expiry_day < soonest and lots[i].points > lots[i].held:
                soonest = lots[i].expiry_day
            digest_add(&core.digest, lot_fact(&lots[i], member))
        core.stats.lots += count
    account.next_expiry_day = soonest
    core.stats.members += 1
    digest_add(&core.digest, account_fact(account, member))
    reservations = get_byte(cursor)
    for i in range(reservations):
        result = load_reservation(core, head, cursor, account, member)
        if result != LOAD_OK:
            return result
    return LOAD_BROKEN if cursor.broken else LOAD_OK


cdef int load_counters(Core* core, Cursor* cursor, Profile* profile, uint32_t member) noexcept nogil:
    cdef uint64_t count = get_varint(cursor), window
    cdef Counter* row
    cdef uint32_t i
    cdef uint8_t per
    if cursor.broken or count > COUNTERS_PER_MEMBER_MAX:
        return LOAD_BROKEN
    if count == 0:
        return LOAD_OK
    if not counters_resize(core, profile, member, <uint32_t>count):
        return LOAD_MEMBERS
    for i in range(<uint32_t>count):
        row = &counters_of(core, profile)[i]
        row.counter = get_key(cursor)
        per = get_byte(cursor)
        window = get_varint(cursor)
        if cursor.broken or window >= DAY_NEVER or (per & 127) == 0 or (per & 127) >= PER_COUNT:
            return LOAD_BROKEN
        row.owner = <uint32_t>(per & 127) << PER_SHIFT | (member if i == 0 else 0)
        row.window[0] = <int32_t>window
        row.value[0] = get_signed(cursor)
        row.window[1] = NO_WINDOW
        row.value[1] = 0
        if per & 128:
            window = get_varint(cursor)
            row.value[1] = get_signed(cursor)
            if window >= <uint64_t>row.window[0]:
                return LOAD_BROKEN
            row.window[1] = <int32_t>window
        if cursor.broken or (i != 0 and row.counter <= (row - 1).counter):
            return LOAD_BROKEN
        digest_add(&core.digest, counter_fact(row, member))
    core.stats.counters += count
    return LOAD_OK


cdef int load_days(Core* core, Cursor* cursor, Profile* profile, uint32_t member) noexcept nogil:
    cdef uint64_t count = get_varint(cursor)
    cdef MemberDay* row
    cdef int64_t day = 0, receipts
    cdef uint64_t more
    cdef uint32_t i
    if cursor.broken or count > DAYS_PER_MEMBER_MAX:
        return LOAD_BROKEN
    if count == 0:
        return LOAD_OK
    if not days_resize(core, profile, member, <uint32_t>count):
        return LOAD_MEMBERS
    for i in range(<uint32_t>count):
        row = &days_of(core, profile)[i]
        more = get_varint(cursor)
        receipts = get_signed(cursor)
        row.spent = get_signed(cursor)
        if cursor.broken or more >= DAY_NEVER or (i != 0 and more == 0) or receipts != <int32_t>receipts:
            return LOAD_BROKEN
        day += <int64_t>more
        if day >= DAY_NEVER:
            return LOAD_BROKEN
        row.day = <int32_t>day
        row.receipts = <int32_t>receipts
        digest_add(&core.digest, day_fact(row, member))
    core.stats.days += count
    return LOAD_OK


cdef int load_profile(Core* core, const SnapshotHead* head, Cursor* cursor) noexcept nogil:
    cdef uint64_t member = get_varint(cursor)
    cdef Profile* profile
    cdef int result
    if cursor.broken or member == 0 or member > core.stats.members or core.profiles[member - 1].known:
        return LOAD_BROKEN
    profile = &core.profiles[member - 1]
    profile.known = 1
    profile.opened_day = <int32_t>get_signed(cursor)
    profile.receipts = <uint32_t>get_varint(cursor)
    profile.first_day = <int32_t>get_signed(cursor)
    profile.last_day = <int32_t>get_signed(cursor)
    profile.tier = get_byte(cursor)
    profile.tier_until = <int32_t>get_signed(cursor)
    profile.birthday = <uint16_t>get_varint(cursor)
    profile.birthday_from = <int32_t>get_signed(cursor)
    profile.segments[0] = get_varint(cursor)
    profile.segments[1] = get_varint(cursor)
    profile.chosen = get_varint(cursor)
    result = load_counters(core, cursor, profile, <uint32_t>member)
    if result == LOAD_OK:
        result = load_days(core, cursor, profile, <uint32_t>member)
    digest_add(&core.digest, profile_fact(profile, <uint32_t>member))
    digest_add(&core.digest, sets_fact(profile, <uint32_t>member))
    core.loaded_profiles += 1
    return LOAD_BROKEN if cursor.broken else result


cdef int load_campaign(Core* core, const SnapshotHead* head, Cursor* cursor) noexcept nogil:
    cdef uint32_t key = get_key(cursor)
    cdef Campaign* row = &core.campaigns[core.campaign_count]
    if cursor.broken or core.campaign_count >= head.campaigns:
        return LOAD_BROKEN
    memset(row, 0, sizeof(Campaign))
    row.key = key
    row.points = get_signed(cursor)
    row.uses = get_signed(cursor)
    if cursor.broken or (core.campaign_count != 0 and row.key <= (row - 1).key):
        return LOAD_BROKEN
    core.campaign_count += 1
    core.stats.campaigns = core.campaign_count
    digest_add(&core.digest, campaign_fact(row))
    return LOAD_OK


cdef int load_rung(Core* core, Cursor* cursor) noexcept nogil:
    cdef uint64_t member = get_varint(cursor), until_s
    cdef uint8_t rung = get_byte(cursor)
    cdef Account* account
    until_s = get_varint(cursor)
    if cursor.broken or member == 0 or member > core.stats.members or rung >= RUNG_COUNT or until_s > <uint64_t>0xFFFFFFFF:
        return LOAD_BROKEN
    account = &core.accounts[member - 1]
    if account.rung != RUNG_OK or account.rung_until_s != 0 or (rung == RUNG_OK and until_s == 0):
        return LOAD_BROKEN
    digest_sub(&core.digest, account_fact(account, <uint32_t>member))
    account.rung = rung
    account.rung_until_s = <uint32_t>until_s
    digest_add(&core.digest, account_fact(account, <uint32_t>member))
    return LOAD_OK


cdef int load_blocks(Core* core, Cursor* cursor) noexcept nogil:
    # The first chunk says the version and how many.
    cdef BlockRow row
    if core.stats.blocks_version == 0:
        core.stats.blocks_version = get_varint(cursor)
        core.blocks_coming = get_varint(cursor)
        return LOAD_OK if core.stats.blocks_version != 0 and core.blocks_coming <= BLOCKS_MAX and not cursor_more(cursor) else LOAD_BROKEN
    while cursor_more(cursor):
        if not block_read(cursor, &row) or core.stats.blocks >= core.blocks_coming or reservations_find(&core.blocks, row.hash) >= 0:
            return LOAD_BROKEN
        set_block(core, &row, True)
    return LOAD_BROKEN if cursor.broken else LOAD_OK


cdef int load_case(Core* core, const SnapshotHead* head, Cursor* cursor) noexcept nogil:
    cdef const uint8_t* data = get_bytes(cursor, sizeof(Case))
    cdef Case row
    if data == NULL or core.case_count == CASES_MAX:
        return LOAD_BROKEN
    memcpy(&row, data, sizeof(Case))
    if (row.sequence == 0 or row.sequence > head.sequence or row.member == 0 or row.member > core.stats.members or row.kind < CASE_REVIEW
            or row.kind > CASE_CHALLENGE or row.state > CASE_PASSED or (core.case_count != 0 and core.cases[core.case_count - 1].sequence >= row.sequence)):
        return LOAD_BROKEN
    core.cases[core.case_count] = row
    core.case_count += 1
    digest_add(&core.digest, case_fact(&row))
    return LOAD_OK


cdef int load_velocity(Core* core, const SnapshotHead* head, Cursor* cursor) noexcept nogil:
    cdef uint8_t table = get_byte(cursor)
    cdef VelocityNow now
    cdef int result
    if cursor.broken or table >= VELOCITY_TABLES:
        return LOAD_BROKEN
    velocity_now(&now, div_floor(head.time_us, MICROSECONDS), counting_day(head.time_us))
    result = velocity_load(&core.velocity, table, cursor, &now)
    if result < 0:
        return LOAD_MEMBERS
    return LOAD_OK if result == VELOCITY_LOADED else LOAD_BROKEN


cdef int load_identifiers(Core* core, const SnapshotHead* head, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t count = size // <uint32_t>sizeof(IdentifierSlot), i, member
    cdef IdentifierSlot slot
    cdef Hash128 key
    cdef uint8_t kind
    if count * <uint32_t>sizeof(IdentifierSlot) != size or core.identifiers.count + count > head.identifiers:
        return LOAD_BROKEN
    for i in range(count):
        memcpy(&slot, data + i * sizeof(IdentifierSlot), sizeof(IdentifierSlot))
        member = slot.member & IDENTIFIER_MEMBER_MASK
        kind = <uint8_t>(slot.member >> IDENTIFIER_TYPE_SHIFT)
        key.lo = slot.lo
        key.hi = slot.hi
        if member == 0 or member > head.members:
            return LOAD_BROKEN
        identifiers_add(&core.identifiers, key, member, kind)
        digest_add(&core.digest, fact_hash(FACT_IDENTIFIER, member, kind, key.lo, key.hi, 0))
    return LOAD_OK


cdef int load_keys(Core* core, const uint8_t* data, uint32_t size) noexcept nogil:
    # A generation keeps together: where it does not fit beside what the filling one holds, it begins the next one.
    cdef KeysHead keys
    cdef KeySlot slot
    cdef KeySlot* place
    cdef KeyTable* table
    cdef Generation* filling
    cdef Hash128 key
    cdef uint32_t i
    if size < sizeof(KeysHead):
        return LOAD_BROKEN
    memcpy(&keys, data, sizeof(KeysHead))
    if keys.table >= KEYS_COUNT or sizeof(KeysHead) + <uint64_t>keys.count * sizeof(KeySlot) != size or keys.count > keys.keys:
        return LOAD_BROKEN
    table = &core.keys[keys.table]
    if keys.last_sequence != 0 and keys.last_sequence < table.keys_from:
        return LOAD_OK          # a run holds it
    filling = generation_at(table, table.full)
    if core.loading_first[keys.table] != keys.first_sequence:
        core.loading_first[keys.table] = keys.first_sequence
        core.loading_beside[keys.table] = filling.count
        if filling.count + keys.keys > table.count_max:
            if keys.keys > table.count_max or not keys_drop(table) or keys.first_sequence <= filling.first_sequence:
                return LOAD_KEYS
            keys_turn(table, keys.first_sequence)
            filling = generation_at(table, table.full)
            core.loading_beside[keys.table] = 0
    if filling.count + keys.count > table.count_max:
        return LOAD_BROKEN
    if keys.order_max > filling.order_max:
        filling.order_max = keys.order_max
    if keys.order_min < filling.order_min:
        filling.order_min = keys.order_min
    for i in range(keys.count):
        memcpy(&slot, data + sizeof(KeysHead) + i * sizeof(KeySlot), sizeof(KeySlot))
        key.lo = slot.lo
        key.hi = slot.hi
        if key.lo == 0 and key.hi == 0:
            return LOAD_BROKEN
        if slot_first(&slot) < table.keys_from and slot_second(&slot) < table.keys_from:
            continue            # a run holds it
        place = keys_look(table, filling, key) if core.loading_beside[keys.table] != 0 else NULL
        if place == NULL:
            place = keys_insert(table, filling, key)
        if slot_first(&slot) != 0:
            slot_set_first(place, slot_first(&slot))
        if slot_second(&slot) != 0:
            slot_set_second(place, slot_second(&slot))
    return LOAD_OK


cdef int load_end(Core* core, const SnapshotHead* head) noexcept nogil:
    # The state is complete; what is derived from it.
    cdef Hash128 digest
    if (core.stats.members != head.members or core.identifiers.count != head.identifiers or core.stats.lots != head.lots
            or core.stats.reservations_active != head.reservations_active or core.program == NULL
            or core.loaded_profiles != head.profiles or core.stats.counters != head.counters or core.stats.days != head.days
            or core.campaign_count != head.campaigns or core.stats.blocks != core.blocks_coming):
        return LOAD_BROKEN
    digest = core_digest(core)
    if digest.lo != head.digest.lo or digest.hi != head.digest.hi:
        return LOAD_DIGEST
    core.stats.identifiers = core.identifiers.count
    core.stats.bytes_accounts = core.stats.members * sizeof(Account)
    core.stats.bytes_identifiers = core.stats.identifiers * sizeof(IdentifierSlot)
    count_bytes(core)
    return LOAD_OK


cdef void link_image(Programmes* p, Loaded* loaded) noexcept nogil:
    # Behind those that are there: a snapshot of what was loaded is what was loaded.
    cdef Loaded** link = &p.images
    while link[0] != NULL:
        link = &link[0].next
    link[0] = loaded
    p.image_count += 1


cdef int load_program(Core* core, const SnapshotHead* head, const uint8_t* data, uint32_t size) noexcept nogil:
    # Of a snapshot of version 1 or 2: the one programme that the journal began with.
    cdef Programmes* p = &core.programmes
    cdef Loaded* loaded = loaded_copy(data, size) if core.program == NULL and head.program == 1 else NULL
    if loaded == NULL:
        return LOAD_PROGRAM
    link_image(p, loaded)
    loaded.users = 1
    keep_wallets(p, loaded.program.wallets, loaded.program.wallet_count)
    p.versions[0].sequence = 1
    p.versions[0].effective_us = 0
    core.program_count = 1
    put_in_force(core, loaded, 1, 0)
    return LOAD_OK


cdef int load_images(Core* core, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef Assembly* assembly = &core.programmes.assembly
    cdef ImagePiece piece
    cdef Loaded* loaded
    cdef uint32_t at = 0
    while at < size:
        if size - at < sizeof(ImagePiece):
            return LOAD_BROKEN
        memcpy(&piece, data + at, sizeof(ImagePiece))
        at += sizeof(ImagePiece)
        if (piece.count > size - at or piece.size < LOADED_BYTES_MIN or piece.size > IMAGE_BYTES_MAX or piece.filled > piece.size
                or piece.offset > piece.filled or piece.count > piece.filled - piece.offset):
            return LOAD_BROKEN
        if piece.offset == 0:
            assembly_end(assembly)
            assembly.bytes = <uint8_t*>malloc(piece.size)
            if assembly.bytes == NULL:
                return LOAD_PROGRAM
            memcpy(assembly.hash, piece.hash, 32)
            assembly.size = piece.size
        elif piece.size != assembly.size or piece.offset != assembly.filled or memcmp(piece.hash, assembly.hash, 32) != 0:
            return LOAD_BROKEN
        memcpy(assembly.bytes + piece.offset, data + at, piece.count)
        assembly.filled += piece.count
        at += piece.count
        if assembly.filled == piece.size:
            loaded = loaded_take(assembly.bytes, piece.size)
            assembly.bytes = NULL
            assembly_end(assembly)
            if loaded == NULL:
                return LOAD_PROGRAM
            loaded.until_us = piece.until_us
            link_image(&core.programmes, loaded)
    return LOAD_OK


cdef int load_versions(Core* core, const SnapshotHead* head, Cursor* cursor) noexcept nogil:
    cdef Programmes* p = &core.programmes
    cdef uint64_t version = get_varint(cursor), sequence = 0
    cdef const uint8_t* hash = get_bytes(cursor, 32)
    cdef Loaded* loaded = loaded_find(p.images, hash, 32) if hash != NULL else NULL
    cdef Loaded* later
    cdef uint64_t count = get_varint(cursor)
    cdef int64_t effective_us = 0
    cdef WalletDefinition wallet
    cdef Slice name
    cdef uint32_t i
    if loaded == NULL or core.program != NULL or head.program > VERSIONS_MAX or version == 0 or version > head.program or count > PROGRAMS_COMING_MAX:
        return LOAD_PROGRAM
    for i in range(<uint32_t>count):
        p.coming[i].effective_us = get_signed(cursor)
        p.coming[i].version = <uint32_t>get_varint(cursor)
        hash = get_bytes(cursor, 32)
        later = loaded_find(p.images, hash, 32) if hash != NULL else NULL
        if later == NULL:
            return LOAD_PROGRAM
        later.users += 1
        p.coming[i].loaded = later
    p.coming_count = <uint32_t>count
    count = get_varint(cursor)
    if count > WALLETS_MAX:
        return LOAD_PROGRAM
    for i in range(<uint32_t>count):
        memset(&wallet, 0, sizeof(WalletDefinition))
        name = get_text(cursor)
        if name.size > WALLET_NAME_BYTES_MAX:
            return LOAD_PROGRAM
        memcpy(wallet.name, name.data, name.size)
        wallet.name_size = name.size
        wallet.scale = get_byte(cursor)
        p.wallets[i] = wallet
    p.wallet_count = <uint32_t>count
    for i in range(head.program):
        sequence += get_varint(cursor)
        effective_us += get_signed(cursor)
        p.versions[i].sequence = sequence
        p.versions[i].effective_us = effective_us
    if cursor.broken:
        return LOAD_PROGRAM
    core.program_count = head.program
    loaded.users += 1
    put_in_force(core, loaded, <uint32_t>version, 0)
    return LOAD_OK


cdef int core_load(Core* core, const SnapshotHead* head, uint32_t section, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef Cursor cursor
    cdef Slice whole
    cdef int result = LOAD_OK
    whole.data = data
    whole.size = size
    cursor_open(&cursor, &whole)
    if section == SNAPSHOT_PROGRAM:
        return load_program(core, head, data, size)
    if section == SNAPSHOT_IMAGES:
        return load_images(core, data, size)
    if section == SNAPSHOT_VERSIONS:
        return load_versions(core, head, &cursor)
    if section == SNAPSHOT_FINISHED:
        while cursor_more(&cursor) and result == LOAD_OK:
            result = load_reservation(core, head, &cursor, NULL, 0)
        return LOAD_BROKEN if cursor.broken else result
    if section == SNAPSHOT_ACCOUNTS:
        while cursor_more(&cursor) and result == LOAD_OK:
            result = load_account(core, head, &cursor)
        return LOAD_BROKEN if cursor.broken else result
    if section == SNAPSHOT_PROFILES:
        while cursor_more(&cursor) and result == LOAD_OK:
            result = load_profile(core, head, &cursor)
        return LOAD_BROKEN if cursor.broken else result
    if section == SNAPSHOT_CAMPAIGNS:
        while cursor_more(&cursor) and result == LOAD_OK:
            result = load_campaign(core, head, &cursor)
        return LOAD_BROKEN if cursor.broken else result
    if section == SNAPSHOT_RUNGS:
        while cursor_more(&cursor) and result == LOAD_OK:
            result = load_rung(core, &cursor)
        return LOAD_BROKEN if cursor.broken else result
    if section == SNAPSHOT_VELOCITY:
        while cursor_more(&cursor) and result == LOAD_OK:
            result = load_velocity(core, head, &cursor)
        return LOAD_BROKEN if cursor.broken else result
    if section == SNAPSHOT_BLOCKS:
        return load_blocks(core, &cursor)
    if section == SNAPSHOT_CASES:
        while cursor_more(&cursor) and result == LOAD_OK:
            result = load_case(core, head, &cursor)
        return LOAD_BROKEN if cursor.broken else result
    if section == SNAPSHOT_VELOCITY_SUMS:
        if velocity_load_sums(&core.velocity, counting_day(head.time_us), &cursor) != VELOCITY_LOADED:
            return LOAD_BROKEN
        return LOAD_OK
    if section == SNAPSHOT_IDENTIFIERS:
        return load_identifiers(core, head, data, size)
    if section == SNAPSHOT_KEYS:
        return load_keys(core, data, size)
    if section == SNAPSHOT_END:
        return load_end(core, head)
    return LOAD_BROKEN
