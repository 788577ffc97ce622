-- ARGV: owner, for how long a lock is kept for the first.
leave(ARGV[1])
local is_held = redis.call('HGET', record, 'owner') == ARGV[1]
if is_held then redis.call('DEL', record) end
if is_held or redis.call('EXISTS', record) == 0 then hand_over(milliseconds(), ARGV[2]) end
return is_held and 1 or 0
