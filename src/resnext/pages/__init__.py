"""What HTML pages share. Each page is one file that needs no other.

template.py   templates with the shared files built in, values, hashes for policies
head.html     the first lines of every page
picture.html  the drawing where a picture will be
base.css      colours in light and dark, text, focus
classify.css  pages that classify: picture, answer, bars, strip
el.js         elements
base.js       elements, percent, the status line
classify.js   pages that classify: drop, paste, files, camera
"""
