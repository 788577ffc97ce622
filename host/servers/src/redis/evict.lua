-- ARGV: the fencing token of the grant to revoke, or nothing; hand-off reservation in milliseconds.
local held = redis.call('HMGET', record, 'fence', 'to', 'owner')
if not held[1] or (ARGV[1] ~= '' and held[1] ~= ARGV[1]) then return 0 end
redis.call('DEL', record)
redis.call('PUBLISH', held[2], held[3])
hand_over(milliseconds(), ARGV[2])
return 1
