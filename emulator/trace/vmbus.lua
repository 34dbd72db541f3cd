-- SPDX-License-Identifier: MIT
-- Wireshark dissector for traces of the VMBus host (`vmbus trace`, `vmbus serve --trace`).
--
--   wireshark -X lua_script:vmbus.lua trace.pcapng
--
-- Or put it into the folder for personal Lua plugins (Help, About Wireshark, Folders). It takes records of link type
-- DLT_USER0 (147) whose layout docs/trace.md describes, and knows what Python knows: the tables of messages below are
-- written from emulator/wire. Nothing here may raise an error, whatever the bytes: they come from a guest.
--
-- Lua 5.1 to 5.4, so no bit operators.

-- begin of what `python -m emulator.trace.dissector` writes
local KINDS = {
  [1] = "MESSAGE",
  [2] = "PACKET",
  [3] = "EVENT",
  [4] = "NOTE",
}
local DIRECTIONS = {
  [0] = "NONE",
  [1] = "FROM_GUEST",
  [2] = "TO_GUEST",
}
local EVENTS = {
  [0] = "NONE",
  [1] = "CONNECTION",
  [2] = "CHANNEL",
  [3] = "QEMU_CONNECTED",
  [4] = "QEMU_GONE",
  [5] = "RESET",
  [6] = "STOPPED",
  [7] = "RESUMED",
  [8] = "SAVED",
  [9] = "RESTORED",
  [10] = "BUS_CONNECTED",
  [11] = "BUS_DISCONNECTED",
  [12] = "CHANNEL_OPENED",
  [13] = "CHANNEL_CLOSED",
  [14] = "GUEST_ERROR",
}
local TYPES = {
  [1] = "OFFER_CHANNEL",
  [2] = "RESCIND_CHANNEL_OFFER",
  [3] = "REQUEST_OFFERS",
  [4] = "ALL_OFFERS_DELIVERED",
  [5] = "OPEN_CHANNEL",
  [6] = "OPEN_RESULT",
  [7] = "CLOSE_CHANNEL",
  [8] = "GPADL_HEADER",
  [9] = "GPADL_BODY",
  [10] = "GPADL_CREATED",
  [11] = "GPADL_TEARDOWN",
  [12] = "GPADL_TORNDOWN",
  [13] = "REL_ID_RELEASED",
  [14] = "INITIATE_CONTACT",
  [15] = "VERSION_RESPONSE",
  [16] = "UNLOAD",
  [17] = "UNLOAD_COMPLETE",
  [18] = "OPEN_RESERVED_CHANNEL",
  [19] = "CLOSE_RESERVED_CHANNEL",
  [20] = "CLOSE_RESERVED_CHANNEL_RESPONSE",
  [21] = "TL_CONNECT_REQUEST",
  [22] = "MODIFY_CHANNEL",
  [23] = "TL_CONNECT_RESULT",
  [24] = "MODIFY_CHANNEL_RESPONSE",
  [25] = "MODIFY_CONNECTION",
  [26] = "MODIFY_CONNECTION_RESPONSE",
  [27] = "PAUSE",
  [28] = "PAUSE_RESPONSE",
  [29] = "RESUME",
}
local STATUSES = {
  [0] = "SUCCESS",
  [0x8000ffff] = "UNSUCCESSFUL",
  [0xc0000236] = "CONNECTION_REFUSED",
}
local PACKETS = {
  [6] = "IN_BAND",
  [7] = "TRANSFER_PAGES",
  [9] = "GPA_DIRECT",
  [10] = "CANCEL",
  [11] = "COMPLETION",
}
local VERSIONS = {
  [0x0000000d] = "0.13",
  [0x00010001] = "1.1",
  [0x00020004] = "2.4",
  [0x00030000] = "3.0",
  [0x00040000] = "4.0",
  [0x00040001] = "4.1",
  [0x00050000] = "5.0",
  [0x00050001] = "5.1",
  [0x00050002] = "5.2",
  [0x00050003] = "5.3",
  [0x00060000] = "6.0",
}
local FEATURES = {
  {0x01, "GUEST_SPECIFIED_SIGNAL_PARAMETERS"},
  {0x02, "CHANNEL_INTERRUPT_REDIRECTION"},
  {0x04, "MODIFY_CONNECTION"},
  {0x08, "CLIENT_ID"},
  {0x10, "CONFIDENTIAL_CHANNELS"},
  {0x20, "PAUSE_RESUME"},
  {0x40, "SERVER_SPECIFIED_MONITOR_PAGES"},
  {0x80, "GPA_PINNING"},
}
local RULES = {
  TYPE = "the packet type is one of 6, 7, 9, 10, 11",
  FLAGS = "no descriptor flag but bit 0 is set",
  DATA_OFFSET_LOW = "data_offset8 covers the descriptor and the header of the packet type",
  DATA_OFFSET_HIGH = "data_offset8 is not beyond length8",
  AVAILABLE = "the packet and its trailer lie within the bytes that the writer has published",
  RANGE_COUNT = "range_count is not 0 and its ranges fill the header, as far as the type demands",
  RANGE_LENGTH = "a GPA range is not empty",
  RANGE_OFFSET = "the offset of a GPA range lies in its first page",
  RANGE_PFNS = "the page numbers of a GPA range lie within the header",
}
-- type, from guest, since, one of these features, least body, fields
local FORMS = {
  {1, false, 0x0000000d, 0x00, 188, "OfferChannel", [[
    interface_id:guid@0
    instance_id:guid@16
    flags:x16@48
    mmio_megabytes:u16@50
    user_defined:b120@52
    subchannel_index:u16@172
    mmio_megabytes_optional:u16@174
    channel_id:u32@176
    monitor_id:u8@180
    monitor_allocated:u8@181
    is_dedicated:u16@182
    connection_id:x32@184
  ]]},
  {2, false, 0x0000000d, 0x00, 4, "RescindChannelOffer", [[
    channel_id:u32@0
  ]]},
  {3, true, 0x0000000d, 0x00, 0, "RequestOffers", [[
  ]]},
  {4, false, 0x0000000d, 0x00, 0, "AllOffersDelivered", [[
  ]]},
  {5, true, 0x0000000d, 0x00, 140, "OpenChannel", [[
    channel_id:u32@0
    open_id:u32@4
    ring_buffer_gpadl_id:x32@8
    target_vp:x32@12
    downstream_ring_buffer_page_offset:u32@16
    user_data:b120@20
  ]]},
  {5, true, 0x00060000, 0x03, 148, "OpenChannel2", [[
    channel_id:u32@0
    open_id:u32@4
    ring_buffer_gpadl_id:x32@8
    target_vp:x32@12
    downstream_ring_buffer_page_offset:u32@16
    user_data:b120@20
    connection_id:x32@140
    event_flag:u16@144
    flags:x16@146
  ]]},
  {6, false, 0x0000000d, 0x00, 12, "OpenResult", [[
    channel_id:u32@0
    open_id:u32@4
    status:x32@8
  ]]},
  {7, true, 0x0000000d, 0x00, 4, "CloseChannel", [[
    channel_id:u32@0
  ]]},
  {8, true, 0x0000000d, 0x00, 12, "GpadlHeader", [[
    channel_id:u32@0
    gpadl_id:x32@4
    length:u16@8
    count:u16@10
    tail:tail@12
  ]]},
  {9, true, 0x0000000d, 0x00, 8, "GpadlBody", [[
    gpadl_id:x32@4
    tail:tail@8
  ]]},
  {10, false, 0x0000000d, 0x00, 12, "GpadlCreated", [[
    channel_id:u32@0
    gpadl_id:x32@4
    status:x32@8
  ]]},
  {11, true, 0x0000000d, 0x00, 8, "GpadlTeardown", [[
    channel_id:u32@0
    gpadl_id:x32@4
  ]]},
  {12, false, 0x0000000d, 0x00, 4, "GpadlTorndown", [[
    gpadl_id:x32@0
  ]]},
  {13, true, 0x0000000d, 0x00, 4, "RelIdReleased", [[
    channel_id:u32@0
  ]]},
  {14, true, 0x0000000d, 0x00, 32, "InitiateContact", [[
    version_requested:x32@0
    target_message_vp:u32@4
    interrupt_page_or_target_info:x64@8
    parent_to_child_monitor_page_gpa:x64@16
    child_to_parent_monitor_page_gpa:x64@24
  ]]},
  {14, true, 0x00060000, 0x00, 48, "InitiateContact2", [[
    version_requested:x32@0
    target_message_vp:u32@4
    interrupt_page_or_target_info:x64@8
    parent_to_child_monitor_page_gpa:x64@16
    child_to_parent_monitor_page_gpa:x64@24
    client_id:guid@32
  ]]},
  {15, false, 0x0000000d, 0x00, 8, "VersionResponse", [[
    version_supported:u8@0
    connection_state:u8@1
    selected_version_or_connection_id:x32@4
  ]]},
  {15, false, 0x00060000, 0x00, 12, "VersionResponse2", [[
    version_supported:u8@0
    connection_state:u8@1
    selected_version_or_connection_id:x32@4
    supported_features:x32@8
  ]]},
  {15, false, 0x00060000, 0x40, 32, "VersionResponse3", [[
    version_supported:u8@0
    connection_state:u8@1
    selected_version_or_connection_id:x32@4
    supported_features:x32@8
    parent_to_child_monitor_page_gpa:x64@16
    child_to_parent_monitor_page_gpa:x64@24
  ]]},
  {16, true, 0x0000000d, 0x00, 0, "Unload", [[
  ]]},
  {17, false, 0x00010001, 0x00, 0, "UnloadComplete", [[
  ]]},
  {18, true, 0x00040000, 0x00, 20, "OpenReservedChannel", [[
    channel_id:u32@0
    target_vp:x32@4
    target_sint:u32@8
    ring_buffer_gpadl:x32@12
    downstream_page_offset:u32@16
  ]]},
  {19, true, 0x00040000, 0x00, 12, "CloseReservedChannel", [[
    channel_id:u32@0
    target_vp:x32@4
    target_sint:u32@8
  ]]},
  {20, false, 0x00040000, 0x00, 4, "CloseReservedChannelResponse", [[
    channel_id:u32@0
  ]]},
  {21, true, 0x00040000, 0x00, 32, "TlConnectRequest", [[
    endpoint_id:guid@0
    service_id:guid@16
  ]]},
  {21, true, 0x00050002, 0x00, 48, "TlConnectRequest2", [[
    endpoint_id:guid@0
    service_id:guid@16
    silo_id:guid@32
  ]]},
  {22, true, 0x00040001, 0x00, 8, "ModifyChannel", [[
    channel_id:u32@0
    target_vp:x32@4
  ]]},
  {23, false, 0x00040001, 0x00, 36, "TlConnectResult", [[
    endpoint_id:guid@0
    service_id:guid@16
    status:x32@32
  ]]},
  {24, false, 0x00050003, 0x00, 8, "ModifyChannelResponse", [[
    channel_id:u32@0
    status:x32@4
  ]]},
  {25, true, 0x00060000, 0x04, 16, "ModifyConnection", [[
    parent_to_child_monitor_page_gpa:x64@0
    child_to_parent_monitor_page_gpa:x64@8
  ]]},
  {26, false, 0x00060000, 0x04, 1, "ModifyConnectionResponse", [[
    connection_state:u8@0
  ]]},
  {27, true, 0x00060000, 0x20, 0, "Pause", [[
  ]]},
  {28, false, 0x00060000, 0x20, 0, "PauseResponse", [[
  ]]},
  {29, true, 0x00060000, 0x20, 0, "Resume", [[
  ]]},
}
-- end of what `python -m emulator.trace.dissector` writes

local HEADER = 40
local FORMAT = 1
local PAGE = 4096
local DESCRIPTOR = 16
local MAX_MESSAGE = 240
local NO_VP = 0xffffffff
local NO_SINT = 0xffff
local NO_OFFSET = 0xffffffff
local INITIATE_CONTACT, GPADL_HEADER, GPADL_BODY = 14, 8, 9
local TRANSFER_PAGES, GPA_DIRECT, COMPLETION = 7, 9, 11
local LEAST_OFFSET8 = { [6] = 2, [7] = 3, [9] = 3, [10] = 2, [11] = 2 }
local LATEST = 0xffffffff

local vmbus = Proto("vmbus", "Hyper-V VMBus")
local fields, experts = {}, {}

-- The record header.

fields.format = ProtoField.uint8("vmbus.trace.format", "Format version")
fields.kind = ProtoField.uint8("vmbus.kind", "Kind", base.DEC, KINDS)
fields.direction = ProtoField.uint8("vmbus.direction", "Direction", base.DEC, DIRECTIONS)
fields.header_size = ProtoField.uint16("vmbus.trace.header_size", "Header size")
fields.event = ProtoField.uint16("vmbus.event", "Event", base.DEC, EVENTS)
fields.flags = ProtoField.uint32("vmbus.trace.flags", "Flags", base.HEX)
fields.refused = ProtoField.bool("vmbus.trace.refused", "Refused by the host as malformed", 32, nil, 0x1)
fields.resent = ProtoField.bool("vmbus.trace.resent", "Sent again after a restore", 32, nil, 0x2)
fields.version = ProtoField.uint32("vmbus.version", "VMBus version in force", base.HEX, VERSIONS)
fields.features = ProtoField.uint32("vmbus.features", "Features in force", base.HEX)
fields.subchannel = ProtoField.uint16("vmbus.subchannel", "Subchannel index")
fields.sint = ProtoField.uint16("vmbus.sint", "SINT")
fields.vp = ProtoField.uint32("vmbus.vp", "VP index")
fields.port = ProtoField.uint32("vmbus.trace.connection_id", "Connection id (port)", base.HEX)
fields.ring_offset = ProtoField.uint32("vmbus.ring_offset", "Ring offset", base.HEX)
fields.vm = ProtoField.string("vmbus.vm", "VM")
fields.text = ProtoField.string("vmbus.text", "Text")

-- Messages: their fields follow from the table.

fields.message_type = ProtoField.uint32("vmbus.message_type", "Message type", base.DEC, TYPES)
fields.form = ProtoField.string("vmbus.form", "Form")
fields.gpa_length = ProtoField.uint32("vmbus.gpa_range.length", "Bytes")
fields.gpa_offset = ProtoField.uint32("vmbus.gpa_range.offset", "Offset in the first page", base.HEX)
fields.pfn = ProtoField.uint64("vmbus.gpa_range.pfn", "Page number", base.HEX)
fields.surplus = ProtoField.bytes("vmbus.surplus", "Surplus bytes")

local NUMBERS = { ["8"] = ProtoField.uint8, ["16"] = ProtoField.uint16, ["32"] = ProtoField.uint32,
                  ["64"] = ProtoField.uint64 }
local NAMED = { status = STATUSES, version_requested = VERSIONS }
local by_name = {}

local function message_field(name, kind)
  if by_name[name] then return by_name[name] end
  local abbreviation, label = "vmbus." .. name, name:gsub("_", " ")
  label = label:sub(1, 1):upper() .. label:sub(2)
  local made
  local style, bits = kind:match("^([ux])(%d+)$")
  if style then
    made = NUMBERS[bits](abbreviation, label, style == "x" and base.HEX or base.DEC, NAMED[name])
  elseif kind == "guid" then
    made = ProtoField.guid(abbreviation, label)
  else
    made = ProtoField.bytes(abbreviation, label)
  end
  by_name[name] = made
  fields[#fields + 1] = made
  return made
end

local WIDTHS = { u8 = 1, u16 = 2, u32 = 4, u64 = 8, x8 = 1, x16 = 2, x32 = 4, x64 = 8, guid = 16 }
-- (type, from guest) to the forms of the message, the shortest first.
local forms = { [true] = {}, [false] = {} }
for _, row in ipairs(FORMS) do
  local form = { since = row[3], features = row[4], size = row[5], name = row[6], fields = {} }
  for name, kind, offset in row[7]:gmatch("([%w_]+):(%w+)@(%d+)") do
    local width = WIDTHS[kind] or tonumber(kind:match("^b(%d+)$"))
    form.fields[#form.fields + 1] =
      { name = name, kind = kind, offset = tonumber(offset), width = width, field = message_field(name, kind) }
  end
  local known = forms[row[2]]
  known[row[1]] = known[row[1]] or {}
  table.insert(known[row[1]], form)
end
local channel_id = message_field("channel_id", "u32")
local interface_id = message_field("interface_id", "guid")
local instance_id = message_field("instance_id", "guid")

-- Packets.

fields.packet_type = ProtoField.uint16("vmbus.packet.type", "Type", base.DEC, PACKETS)
fields.offset8 = ProtoField.uint16("vmbus.packet.offset8", "Payload offset in units of 8")
fields.length8 = ProtoField.uint16("vmbus.packet.length8", "Length in units of 8")
fields.packet_flags = ProtoField.uint16("vmbus.packet.flags", "Flags", base.HEX)
fields.wants_completion = ProtoField.bool("vmbus.packet.completion_requested", "Completion requested", 16, nil, 0x1)
fields.transaction_id = ProtoField.uint64("vmbus.packet.transaction_id", "Transaction id", base.HEX)
fields.payload = ProtoField.bytes("vmbus.packet.payload", "Payload")
fields.range_count = ProtoField.uint32("vmbus.packet.range_count", "Range count")
fields.set_id = ProtoField.uint16("vmbus.packet.set_id", "Transfer page set", base.HEX)
fields.owns_set = ProtoField.bool("vmbus.packet.sender_owns_set", "Sender owns the set", 8, nil, 0x1)
fields.transfer_count = ProtoField.uint32("vmbus.transfer_range.byte_count", "Bytes")
fields.transfer_offset = ProtoField.uint32("vmbus.transfer_range.byte_offset", "Offset in the set", base.HEX)
fields.request_in = ProtoField.framenum("vmbus.request_in", "Request in", base.NONE, frametype.REQUEST)
fields.response_in = ProtoField.framenum("vmbus.response_in", "Completion in", base.NONE, frametype.RESPONSE)
fields.response_time = ProtoField.relative_time("vmbus.response_time", "Time from the request")

experts.malformed = ProtoExpert.new("vmbus.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
experts.refused = ProtoExpert.new("vmbus.refused", "The host refused this packet", expert.group.PROTOCOL,
                                  expert.severity.WARN)
experts.guest_error = ProtoExpert.new("vmbus.guest_error", "The guest broke a rule", expert.group.PROTOCOL,
                                      expert.severity.WARN)
experts.failed = ProtoExpert.new("vmbus.failed", "Not successful", expert.group.RESPONSE_CODE, expert.severity.NOTE)
experts.cut = ProtoExpert.new("vmbus.cut", "Cut: not all bytes are in the trace", expert.group.UNDECODED,
                              expert.severity.NOTE)

local all_fields = {}
for _, field in pairs(fields) do all_fields[#all_fields + 1] = field end
vmbus.fields = all_fields
local all_experts = {}
for _, found in pairs(experts) do all_experts[#all_experts + 1] = found end
vmbus.experts = all_experts

-- Requests that wait for their completion, and the pairs that were found; both by frame.
local waiting, request_of, response_of, sent_at = {}, {}, {}, {}

function vmbus.init()
  waiting, request_of, response_of, sent_at = {}, {}, {}, {}
end

local function any_bit(value, mask)
  local bit = 1
  while bit <= mask do
    if math.floor(mask / bit) % 2 == 1 and math.floor(value / bit) % 2 == 1 then return true end
    bit = bit * 2
  end
  return false
end

local function malformed(tree, text)
  tree:add_proto_expert_info(experts.malformed, text)
end

local function add_pfns(tree, buffer, from, count)
  for index = 0, count - 1 do
    tree:add_le(fields.pfn, buffer(from + 8 * index, 8))
  end
end

-- How many pages `length` bytes touch that begin `offset` bytes into a page.
local function spanned(offset, length)
  return math.floor((offset + length + PAGE - 1) / PAGE)
end

-- The GPA ranges in a piece of a GPADL; a range may go on in the next piece, so nothing is malformed here.
local function gpadl_ranges(tree, buffer, from, is_header)
  local left = buffer:len() - from
  if not is_header then
    add_pfns(tree, buffer, from, math.floor(left / 8))
    return
  end
  while left >= 8 do
    local length, offset = buffer(from, 4):le_uint(), buffer(from + 4, 4):le_uint()
    local pages = math.min(spanned(offset, length), math.floor((left - 8) / 8))
    local range = tree:add(buffer(from, 8 + 8 * pages), "GPA range")
    range:add_le(fields.gpa_length, buffer(from, 4))
    range:add_le(fields.gpa_offset, buffer(from + 4, 4))
    add_pfns(range, buffer, from + 8, pages)
    from, left = from + 8 + 8 * pages, left - 8 - 8 * pages
  end
end

-- The longest form that version and features know and that the bytes fill; the shortest if there is none.
local function form_of(number, from_guest, size, version, features)
  local known = forms[from_guest][number]
  if not known then return nil end
  local all = not from_guest or number == INITIATE_CONTACT or not VERSIONS[version]
  for index = #known, 2, -1 do
    local form = known[index]
    local spoken = all or (version >= form.since and (form.features == 0 or any_bit(features, form.features)))
    if spoken and size >= form.size then return form end
  end
  return known[1]
end

local function dissect_message(body, info, tree, header, cut)
  local size = body:len()
  if size < 8 then
    if size >= 4 then tree:add_le(fields.message_type, body(0, 4)) end
    info.name = size >= 4 and TYPES[body(0, 4):le_uint()] or "NO MESSAGE"
    if not cut then malformed(tree, "a message of " .. size .. " bytes has no header") end
    return
  end
  local number = body(0, 4):le_uint()
  info.name = TYPES[number] or ("MESSAGE " .. number)
  tree:add_le(fields.message_type, body(0, 4))
  if size > MAX_MESSAGE then
    malformed(tree, "a message of " .. size .. " bytes; at most " .. MAX_MESSAGE)
    return
  end
  local form = form_of(number, header.direction == 1, size - 8, header.version, header.features)
  if not form then
    malformed(tree, "type " .. number .. " is not a message of this direction")
    return
  end
  if size - 8 < form.size then
    if not cut then
      malformed(tree, info.name .. " needs " .. form.size .. " bytes of body, not " .. (size - 8))
    end
    return
  end
  tree:add(fields.form, form.name):set_generated()
  local used = form.size
  for _, item in ipairs(form.fields) do
    local at = 8 + item.offset
    if item.kind == "tail" then
      used = size - 8
      if used > item.offset then
        local tail = tree:add(item.field, body(at))
        gpadl_ranges(tail, body, at, number == GPADL_HEADER)
      end
    elseif item.kind == "guid" then
      tree:add_le(item.field, body(at, item.width))
    elseif item.kind:sub(1, 1) == "b" then
      tree:add(item.field, body(at, item.width))
    else
      local added = tree:add_le(item.field, body(at, item.width))
      local value = item.width <= 4 and body(at, item.width):le_uint()
      if item.name == "channel_id" or item.name == "target_vp" then
        info.text[#info.text + 1] = string.format("%s=%d", item.name, value)
      elseif item.name == "version_requested" then
        info.text[#info.text + 1] = string.format("version=%d.%d", math.floor(value / 65536), value % 65536)
      elseif item.name == "gpadl_id" or item.name == "status" or item.name == "ring_buffer_gpadl_id" then
        info.text[#info.text + 1] = string.format("%s=0x%x", item.name, value)
      end
      if item.name == "status" and value ~= 0 then added:add_proto_expert_info(experts.failed) end
    end
  end
  if size - 8 > used then tree:add(fields.surplus, body(8 + used)) end
end

local function gpa_direct(body, tree, stop)
  local count = body(20, 4):le_uint()
  tree:add_le(fields.range_count, body(20, 4))
  if count == 0 then
    malformed(tree, "range_count 0; the rule: " .. RULES.RANGE_COUNT)
    return
  end
  local at = 24
  for index = 0, count - 1 do
    if stop - at < 8 then
      malformed(tree, index .. " of " .. count .. " ranges fill the header; the rule: " .. RULES.RANGE_COUNT)
      return
    end
    local length, offset = body(at, 4):le_uint(), body(at + 4, 4):le_uint()
    local pages = spanned(offset, length)
    local room = math.floor((stop - at - 8) / 8)
    local range = tree:add(body(at, 8 + 8 * math.min(pages, room)), "GPA range " .. index)
    range:add_le(fields.gpa_length, body(at, 4))
    range:add_le(fields.gpa_offset, body(at + 4, 4))
    local rule = length == 0 and RULES.RANGE_LENGTH or offset >= PAGE and RULES.RANGE_OFFSET
      or pages > room and RULES.RANGE_PFNS
    if rule then
      malformed(range, "GPA range " .. index .. "; the rule: " .. rule)
      return
    end
    add_pfns(range, body, at + 8, pages)
    at = at + 8 + 8 * pages
  end
end

local function transfer_pages(body, tree, stop)
  local count = body(20, 4):le_uint()
  tree:add_le(fields.set_id, body(16, 2))
  tree:add(fields.owns_set, body(18, 1))
  tree:add_le(fields.range_count, body(20, 4))
  if count == 0 or count * 8 ~= stop - 24 then
    malformed(tree, "range_count " .. count .. " in a header with " .. (stop - 24) .. " bytes; the rule: "
      .. RULES.RANGE_COUNT)
    return
  end
  for at = 24, stop - 8, 8 do
    local range = tree:add(body(at, 8), "Transfer page range " .. math.floor((at - 24) / 8))
    range:add_le(fields.transfer_count, body(at, 4))
    range:add_le(fields.transfer_offset, body(at + 4, 4))
  end
end

-- Pair requests with completions. A transaction id may be used again once it is completed.
local function match_transaction(pinfo, tree, header, number, flags, id)
  local frame = pinfo.number
  if not pinfo.visited then
    local way = number == COMPLETION and 3 - header.direction or header.direction
    local key = header.vm .. "/" .. header.channel_id .. "/" .. way .. "/" .. id
    if number == COMPLETION then
      request_of[frame] = waiting[key]
      if waiting[key] then response_of[waiting[key]] = frame end
      waiting[key] = nil
    elseif flags % 2 == 1 then
      waiting[key] = frame
      sent_at[frame] = pinfo.rel_ts
    end
  end
  if response_of[frame] then tree:add(fields.response_in, response_of[frame]):set_generated() end
  local request = request_of[frame]
  if request then
    tree:add(fields.request_in, request):set_generated()
    local delta = pinfo.rel_ts - sent_at[request]
    -- Relative times: a double has no nanoseconds of the years since 1970.
    local seconds = math.floor(delta)
    local nanoseconds = math.floor((delta - seconds) * 1e9 + 0.5)
    tree:add(fields.response_time, NSTime.new(seconds, nanoseconds)):set_generated()
  end
end

local function dissect_packet(body, pinfo, info, tree, header, cut)
  local size = body:len()
  info.name = "PACKET"
  if size < DESCRIPTOR then
    if not cut then malformed(tree, size .. " bytes are no descriptor") end
    return
  end
  local number, offset8 = body(0, 2):le_uint(), body(2, 2):le_uint()
  local length8, flags = body(4, 2):le_uint(), body(6, 2):le_uint()
  info.name = PACKETS[number] or ("PACKET " .. number)
  tree:add_le(fields.packet_type, body(0, 2))
  tree:add_le(fields.offset8, body(2, 2))
  tree:add_le(fields.length8, body(4, 2))
  tree:add_le(fields.packet_flags, body(6, 2)):add_le(fields.wants_completion, body(6, 2))
  tree:add_le(fields.transaction_id, body(8, 8))
  local id = tostring(body(8, 8):le_uint64())
  info.text[#info.text + 1] = "channel=" .. header.channel_id .. " transaction=0x" .. body(8, 8):le_uint64():tohex()
  if flags % 2 == 1 then info.text[#info.text + 1] = "completion requested" end
  local rule = not PACKETS[number] and RULES.TYPE or flags > 1 and RULES.FLAGS
    or offset8 < LEAST_OFFSET8[number] and RULES.DATA_OFFSET_LOW or offset8 > length8 and RULES.DATA_OFFSET_HIGH
  if rule then
    malformed(tree, "the rule: " .. rule)
    return
  end
  match_transaction(pinfo, tree, header, number, flags, id)
  local stop, length = offset8 * 8, length8 * 8
  if size < length and not cut then tree:add_proto_expert_info(experts.cut) end
  if size < stop then return end
  if number == GPA_DIRECT then
    gpa_direct(body, tree, stop)
  elseif number == TRANSFER_PAGES then
    transfer_pages(body, tree, stop)
  end
  local there = math.min(size, length) - stop
  info.text[#info.text + 1] = "payload " .. (length - stop)
  if there > 0 then tree:add(fields.payload, body(stop, there)) end
end

local function dissect_event(body, info, tree, header)
  info.name = EVENTS[header.event] or ("EVENT " .. header.event)
  if body:len() < 32 then
    malformed(tree, "an event of " .. body:len() .. " bytes")
    return
  end
  if body(0, 16):bytes() ~= ByteArray.new(("00"):rep(16)) then
    tree:add_le(interface_id, body(0, 16))
    tree:add_le(instance_id, body(16, 16))
  end
  if header.channel_id ~= 0 then info.text[#info.text + 1] = "channel=" .. header.channel_id end
  if body:len() > 32 then
    local text = body(32):string(ENC_UTF_8)
    local item = tree:add(fields.text, body(32), text)
    info.text[#info.text + 1] = text
    if info.name == "GUEST_ERROR" then item:add_proto_expert_info(experts.guest_error) end
  end
end

local function dissect_header(buffer, tree)
  local size = buffer(4, 2):le_uint()
  local name = buffer(3, 1):uint()
  local header = {
    kind = buffer(1, 1):uint(), direction = buffer(2, 1):uint(), size = size, event = buffer(6, 2):le_uint(),
    flags = buffer(8, 4):le_uint(), version = buffer(12, 4):le_uint(), features = buffer(16, 4):le_uint(),
    channel_id = buffer(20, 4):le_uint(), vm = "",
  }
  local shown = tree:add(buffer(0, math.min(size, buffer:len())), "Record header")
  shown:add(fields.format, buffer(0, 1))
  shown:add(fields.kind, buffer(1, 1))
  shown:add(fields.direction, buffer(2, 1))
  shown:add_le(fields.header_size, buffer(4, 2))
  if KINDS[header.kind] == "EVENT" then shown:add_le(fields.event, buffer(6, 2)) end
  local flags = shown:add_le(fields.flags, buffer(8, 4))
  flags:add_le(fields.refused, buffer(8, 4))
  flags:add_le(fields.resent, buffer(8, 4))
  shown:add_le(fields.version, buffer(12, 4))
  local features = shown:add_le(fields.features, buffer(16, 4))
  for _, feature in ipairs(FEATURES) do
    if any_bit(header.features, feature[1]) then features:append_text(" " .. feature[2]) end
  end
  if header.channel_id ~= 0 then
    shown:add_le(channel_id, buffer(20, 4))
    shown:add_le(fields.subchannel, buffer(24, 2))
  end
  if buffer(26, 2):le_uint() ~= NO_SINT then shown:add_le(fields.sint, buffer(26, 2)) end
  if buffer(28, 4):le_uint() ~= NO_VP then shown:add_le(fields.vp, buffer(28, 4)) end
  if buffer(32, 4):le_uint() ~= 0 then shown:add_le(fields.port, buffer(32, 4)) end
  if buffer(36, 4):le_uint() ~= NO_OFFSET then shown:add_le(fields.ring_offset, buffer(36, 4)) end
  if size < HEADER + name or size > buffer:len() then
    malformed(shown, "a header of " .. size .. " bytes with a name of " .. name)
    return nil
  end
  if name > 0 then
    header.vm = buffer(HEADER, name):string(ENC_UTF_8)
    shown:add(fields.vm, buffer(HEADER, name), header.vm)
  end
  if header.flags % 2 == 1 then shown:add_proto_expert_info(experts.refused) end
  return header
end

local WAYS = { [1] = { "guest", "host" }, [2] = { "host", "guest" } }

function vmbus.dissector(buffer, pinfo, root)
  local tree = root:add(vmbus, buffer())
  pinfo.cols.protocol = "VMBus"
  if buffer:len() < HEADER then
    malformed(tree, buffer:len() .. " bytes are no header")
    return buffer:len()
  end
  if buffer(0, 1):uint() ~= FORMAT then
    tree:add(fields.format, buffer(0, 1))
    malformed(tree, "format version " .. buffer(0, 1):uint() .. ", not " .. FORMAT)
    return buffer:len()
  end
  local header = dissect_header(buffer, tree)
  if not header then return buffer:len() end
  local kind = KINDS[header.kind]
  if not kind or not DIRECTIONS[header.direction] or (kind == "EVENT" and not EVENTS[header.event]) then
    malformed(tree, "kind " .. header.kind .. ", direction " .. header.direction .. ", event " .. header.event)
    return buffer:len()
  end
  local cut = buffer:reported_len() > buffer:len()
  if cut then tree:add_proto_expert_info(experts.cut) end
  local way = WAYS[header.direction]
  if way then
    pinfo.cols.src = way[1]
    pinfo.cols.dst = way[2]
  end
  local info = { name = kind, text = {} }
  -- A TvbRange cannot be empty.
  local body = header.size < buffer:len() and buffer(header.size):tvb() or ByteArray.new():tvb("nothing")
  if kind == "MESSAGE" then
    dissect_message(body, info, tree, header, cut)
  elseif kind == "PACKET" then
    dissect_packet(body, pinfo, info, tree, header, cut)
  elseif kind == "EVENT" then
    dissect_event(body, info, tree, header)
  elseif body:len() > 0 then
    tree:add(fields.text, body(), body():string(ENC_UTF_8))
    info.text[1] = body():string(ENC_UTF_8)
  end
  tree:append_text(", " .. info.name)
  pinfo.cols.info = info.name .. (#info.text > 0 and " " .. table.concat(info.text, " ") or "")
  return buffer:len()
end

local encapsulations = wtap_encaps or wtap
DissectorTable.get("wtap_encap"):add(encapsulations and encapsulations.USER0 or 45, vmbus)
