-- What wrk sends: 16 clients in turn, each with its own id and, where the proxy gave it one, its session cookie.
--   wrk ... -- PATH PAUSE COOKIE...      PAUSE: the mean pause of a connection between requests, in ms; 0: none
local requests, next_request = {}, 0

function init(args)
    for client = 1, 16 do
        local headers = {
            ["User-Agent"] = "bench",
            ["Accept"] = "*/*",
            ["X-Client-Id"] = "client-" .. client,
            ["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            ["Cookie"] = args[client + 2],
        }
        requests[client] = wrk.format("GET", args[1], headers)
    end
    local pause = tonumber(args[2])
    if pause > 0 then
        -- wrk calls a global `delay` before each request, and only where there is one.
        delay = function() return math.random(1, 2 * pause - 1) end
    end
end

function request()
    next_request = next_request % 16 + 1
    return requests[next_request]
end

function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        '\n{"requests": %d, "seconds": %.6f, "p50": %d, "p99": %d, "errors": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
        e.connect + e.read + e.write + e.status + e.timeout))
end
