-- ARGV: owner, for how long it is believed to be there, the channel of its process.
-- Answers whether it is to ask for the lock now.
local now = milliseconds()
if redis.call('EXISTS', record) == 0 then
  local head = first(now)
  if not head or head == ARGV[1] then return 1 end
end
if not redis.call('ZSCORE', queue, ARGV[1]) then
  redis.call('ZADD', queue, redis.call('HINCRBY', waiting, 'last', 1), ARGV[1])
end
redis.call('HSET', waiting, ARGV[1], now + ARGV[2], ARGV[1] .. ':to', ARGV[3])
-- Nobody waits for as long: then all of it goes, the numbers too.
local hour = 3600000
redis.call('PEXPIRE', queue, math.max(hour, ARGV[2] * 2))
redis.call('PEXPIRE', waiting, math.max(hour, ARGV[2] * 2))
return 0
