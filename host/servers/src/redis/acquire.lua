-- ARGV: owner, lifetime of the record in milliseconds or nothing, the ttl, description of the process, its
-- channel, the time by its clock, hand-off reservation in milliseconds.
local owner, ttl = ARGV[1], ARGV[2]
local holder = redis.call('HGET', record, 'owner')
if holder == owner then
  last(ttl)
  redis.call('HSET', record, 'ttl', ARGV[3])
  return {1, redis.call('HGET', record, 'fence')}
end
if holder then return {0, redis.call('PTTL', record)} end
local now = milliseconds()
while true do
  local head = first(now)
  if not head or head == owner then break end
  local kept = redis.call('HMGET', waiting, 'for', 'until')
  if kept[1] ~= head then
    -- The lease has expired, or the waiter with the reservation did not acquire the lock.
    hand_over(now, ARGV[7])
    return {0, tonumber(ARGV[7])}
  end
  if now < tonumber(kept[2]) then return {0, kept[2] - now} end
  leave(head)
end
local fence = redis.call('INCR', counter)
leave(owner)
redis.call('HDEL', waiting, 'for', 'until')
redis.call('HSET', record, 'owner', owner, 'fence', fence, 'ttl', ARGV[3], 'about', ARGV[4],
  'to', ARGV[5], 'since', ARGV[6])
last(ttl)
return {1, tostring(fence)}
