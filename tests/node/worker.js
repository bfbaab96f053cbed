// A worker for `tests/tests/proxy_node.rs`: interim answers, and a mind of its own about uploads.
const http = require('node:http');

function echo(request, response) {
  let bytes = 0;
  request.on('data', (chunk) => { bytes += chunk.length; });
  request.on('end', () => response.end(String(bytes)));
}

const server = http.createServer((request, response) => {
  if (request.url === '/hints') {
    response.writeEarlyHints({ link: '</style.css>; rel=preload', connection: 'x-hop', 'x-hop': '1' }, () => {
      setTimeout(() => response.end('hinted'), 20);
    });
  } else if (request.url === '/url?q="<>"') {
    response.end('untouched');
  } else {
    echo(request, response);
  }
});
server.on('checkContinue', (request, response) => {
  if (request.headers['x-refuse']) {
    response.writeHead(401, { connection: 'close' });
    response.end('no');
  } else {
    response.writeContinue();
    echo(request, response);
  }
});
server.listen(Number(process.env.PORT), '127.0.0.1');
